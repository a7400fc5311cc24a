//! Contexts of the `nats` command line tool: named addresses and credentials.
//!
//! `<config>/nats/context.txt` has the name of the selected context, and `<config>/nats/context/<name>.json` is a
//! context. `<config>` is `$XDG_CONFIG_HOME`, or `~/.config` if that is not set.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dormouse_bus::args::NatsArgs;
use dormouse_bus::nats::{NatsOptions, Secret};
use serde::{Deserialize, Deserializer};

use crate::error::Failure;

/// The directory of the contexts.
#[derive(Debug, Clone)]
pub struct Contexts {
    /// `<config>/nats`, if `<config>` is known.
    directory: Option<PathBuf>,
    home: Option<PathBuf>,
}

/// The used fields of a context. An empty text counts as absent, because the `nats` tool writes empty texts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Context {
    url: OptionalText,
    creds: OptionalText,
    nkey: OptionalText,
    user: OptionalText,
    password: OptionalText,
    token: OptionalText,
    cert: OptionalText,
    key: OptionalText,
    ca: OptionalText,
    inbox_prefix: OptionalText,
    nsc: OptionalText,
    user_jwt: OptionalText,
}

/// The user's choice of a context.
#[derive(Debug, Clone, Default)]
pub struct ContextSelection {
    /// The requested context, by flag or variable.
    pub context: Option<String>,
    /// The connection flags that the command line itself contains.
    pub flags: BTreeSet<String>,
    /// The variable `NATS_URL` has an address.
    pub nats_url_set: bool,
}

impl ContextSelection {
    fn flag(&self, name: &str) -> bool {
        self.flags.contains(name)
    }
}

/// A text that may be absent, null or empty, with the same meaning. It may be a secret and is never printed.
#[derive(Clone, Default)]
struct OptionalText(Option<String>);

impl std::fmt::Debug for OptionalText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "(given)" } else { "(absent)" })
    }
}

impl<'de> Deserialize<'de> for OptionalText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        Ok(Self(text.filter(|text| !text.is_empty())))
    }
}

impl Contexts {
    /// The contexts of the user who runs this process.
    #[must_use]
    pub fn of_user() -> Self {
        let directory = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self::new(directory("XDG_CONFIG_HOME"), directory("HOME"))
    }

    fn new(config_home: Option<PathBuf>, home: Option<PathBuf>) -> Self {
        let config = config_home.or_else(|| home.as_ref().map(|home| home.join(".config")));
        Self { directory: config.map(|config| config.join("nats")), home }
    }

    /// Completes `arguments`, which come from flags and the environment. Flags override the requested context, and the
    /// requested context overrides the environment. The selected context applies only if there is no other address: the
    /// credentials of one system must not go to another.
    ///
    /// # Errors
    /// [`Failure`] if the context does not exist, is unreadable, or needs an unsupported authentication.
    pub fn complete(&self, arguments: NatsArgs, selection: &ContextSelection) -> Result<NatsArgs, Failure> {
        match &selection.context {
            Some(name) if selection.flag("context") || !selection.flag("nats") => {
                let context = self.read(name)?;
                self.merge(name, context, flags_only(&arguments, selection), arguments)
            }
            // A flag overrides the address of the variable's context.
            Some(_) => Ok(arguments),
            None if !arguments.nats.is_empty() || selection.nats_url_set => Ok(arguments),
            None => match self.selected()? {
                Some(name) => {
                    let context = self.read(&name)?;
                    self.merge(&name, context, arguments.clone(), arguments)
                }
                None => Ok(arguments),
            },
        }
    }

    fn selected(&self) -> Result<Option<String>, Failure> {
        let Some(directory) = &self.directory else { return Ok(None) };
        let path = directory.join("context.txt");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|name| !name.is_empty())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::new(format!("cannot read {}: {error}", path.display()))),
        }
    }

    fn read(&self, name: &str) -> Result<Context, Failure> {
        let is_file_name = Path::new(name).file_name().is_some_and(|file| file == name);
        let directory = self.directory.as_ref().filter(|_| is_file_name);
        let Some(directory) = directory else {
            return Err(Failure::usage(format!("{name:?} is not a valid name of a NATS context")));
        };
        let path = directory.join("context").join(format!("{name}.json"));
        let text = fs::read(&path).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                Failure::usage(format!("there is no NATS context {name:?}: {} is missing", path.display()))
            } else {
                Failure::new(format!("cannot read {}: {error}", path.display()))
            }
        })?;
        serde_json::from_slice(&text)
            .map_err(|error| Failure::new(format!("{} is not a NATS context: {error}", path.display())))
    }

    /// `strong` overrides the context, and the context overrides `weak`. Address and credentials of `weak` are not
    /// used.
    fn merge(
        &self,
        name: &str,
        context: Context,
        strong: NatsArgs,
        weak: NatsArgs,
    ) -> Result<NatsArgs, Failure> {
        let mut arguments = strong;
        if arguments.nats.is_empty() {
            let urls = context.url.0.as_deref().unwrap_or(NatsOptions::DEFAULT_URL);
            arguments.nats =
                urls.split(',').map(str::trim).filter(|url| !url.is_empty()).map(Secret::new).collect();
        }
        let authentication_given = arguments.nats_user.is_some()
            || arguments.nats_password.is_some()
            || arguments.nats_token.is_some()
            || arguments.nats_nkey.is_some()
            || arguments.nats_creds.is_some();
        if !authentication_given {
            // Only one method can be used. The `nats` tool checks them in this order.
            if let Some(user) = context.user.0 {
                arguments.nats_user = Some(user);
                arguments.nats_password = context.password.0.map(Secret::new);
            } else if let Some(token) = context.token.0 {
                arguments.nats_token = Some(Secret::new(token));
            } else if let Some(creds) = context.creds.0 {
                arguments.nats_creds = Some(self.path(&creds));
            } else if let Some(nkey) = context.nkey.0 {
                arguments.nats_nkey = Some(self.path(&nkey));
            } else if let Some(method) = unsupported(&context.nsc, &context.user_jwt) {
                return Err(Failure::usage(format!(
                    "the NATS context {name:?} authenticates with `{method}`, which is not supported: use a \
                     credentials file with --nats-creds"
                )));
            }
        }
        if arguments.nats_cert.is_none() && arguments.nats_key.is_none() {
            arguments.nats_cert = context.cert.0.map(|path| self.path(&path));
            arguments.nats_key = context.key.0.map(|path| self.path(&path));
        }
        let ca = context.ca.0.map(|path| self.path(&path));
        arguments.nats_ca = arguments.nats_ca.or(ca).or(weak.nats_ca);
        let inbox_prefix = context.inbox_prefix.0;
        arguments.nats_inbox_prefix = arguments.nats_inbox_prefix.or(inbox_prefix).or(weak.nats_inbox_prefix);
        arguments.nats_tls |= weak.nats_tls;
        Ok(arguments)
    }

    /// A path in the syntax of the `nats` tool: `~/` is the home directory.
    fn path(&self, text: &str) -> PathBuf {
        match (text.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(text),
        }
    }
}

/// The unsupported authentication method of a context, if any.
fn unsupported(nsc: &OptionalText, user_jwt: &OptionalText) -> Option<&'static str> {
    nsc.0.as_ref().map(|_| "nsc").or_else(|| user_jwt.0.as_ref().map(|_| "user_jwt"))
}

/// The arguments without those of the environment.
fn flags_only(arguments: &NatsArgs, selection: &ContextSelection) -> NatsArgs {
    fn of_line<T: Clone>(value: Option<&T>, is_flag: bool) -> Option<T> {
        value.filter(|_| is_flag).cloned()
    }
    NatsArgs {
        nats: if selection.flag("nats") { arguments.nats.clone() } else { Vec::new() },
        nats_user: of_line(arguments.nats_user.as_ref(), selection.flag("nats-user")),
        nats_password: of_line(arguments.nats_password.as_ref(), selection.flag("nats-password")),
        nats_token: of_line(arguments.nats_token.as_ref(), selection.flag("nats-token")),
        nats_nkey: of_line(arguments.nats_nkey.as_ref(), selection.flag("nats-nkey")),
        nats_creds: of_line(arguments.nats_creds.as_ref(), selection.flag("nats-creds")),
        nats_tls: arguments.nats_tls && selection.flag("nats-tls"),
        nats_ca: of_line(arguments.nats_ca.as_ref(), selection.flag("nats-ca")),
        nats_cert: of_line(arguments.nats_cert.as_ref(), selection.flag("nats-cert")),
        nats_key: of_line(arguments.nats_key.as_ref(), selection.flag("nats-key")),
        nats_inbox_prefix: of_line(arguments.nats_inbox_prefix.as_ref(), selection.flag("nats-inbox-prefix")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new() -> Self {
            let home = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(home.0.path().join(".config/nats/context")).unwrap();
            home
        }

        fn context(&self, name: &str, text: &str) {
            fs::write(self.0.path().join(format!(".config/nats/context/{name}.json")), text).unwrap();
        }

        fn select(&self, name: &str) {
            fs::write(self.0.path().join(".config/nats/context.txt"), name).unwrap();
        }

        fn contexts(&self) -> Contexts {
            Contexts::new(None, Some(self.0.path().to_owned()))
        }
    }

    /// A selection by `--context` with this name, and these other flags.
    fn named_context(context: &str, flags: &str) -> ContextSelection {
        let flags = flags.split_whitespace().chain(["context"]).map(str::to_owned).collect();
        ContextSelection { context: Some(context.to_owned()), flags, nats_url_set: false }
    }

    fn addresses(arguments: &NatsArgs) -> Vec<&str> {
        arguments.nats.iter().map(Secret::reveal).collect()
    }

    /// A named context fills all connection options that no flag sets.
    #[test]
    fn context_fills_unset_connection_options() {
        let home = Home::new();
        home.context(
            "prod",
            r#"{"description":"x","url":"tls://a:4222, tls://b:4222","creds":"~/prod.creds","user":"","nkey":"",
                "token":null,"cert":"/c.pem","key":"/k.pem","ca":"/ca.pem","inbox_prefix":"_INBOX.me","jetstream_domain":""}"#,
        );
        let made = home.contexts().complete(NatsArgs::default(), &named_context("prod", "")).unwrap();
        assert_eq!(addresses(&made), ["tls://a:4222", "tls://b:4222"]);
        assert_eq!(made.nats_creds, Some(home.0.path().join("prod.creds")));
        assert_eq!(made.nats_cert, Some(PathBuf::from("/c.pem")));
        assert_eq!(made.nats_key, Some(PathBuf::from("/k.pem")));
        assert_eq!(made.nats_ca, Some(PathBuf::from("/ca.pem")));
        assert_eq!(made.nats_inbox_prefix.as_deref(), Some("_INBOX.me"));
        assert!(made.nats_user.is_none() && made.nats_token.is_none() && made.nats_nkey.is_none());
        made.resolve().unwrap();
    }

    /// Connection flags override the context, and a credential flag replaces all its credentials.
    #[test]
    fn connection_flags_override_context() {
        let home = Home::new();
        home.context(
            "prod",
            r#"{"url":"nats://a:4222","user":"u","password":"p","ca":"/ca.pem","inbox_prefix":"_INBOX.me"}"#,
        );
        let flags = NatsArgs {
            nats: vec![Secret::new("nats://flag:1")],
            nats_token: Some(Secret::new("t")),
            nats_ca: Some(PathBuf::from("/flag.pem")),
            ..NatsArgs::default()
        };
        let made =
            home.contexts().complete(flags, &named_context("prod", "nats nats-token nats-ca")).unwrap();
        assert_eq!(addresses(&made), ["nats://flag:1"]);
        assert!(made.nats_user.is_none() && made.nats_password.is_none());
        assert_eq!(made.nats_ca, Some(PathBuf::from("/flag.pem")));
        assert_eq!(made.nats_inbox_prefix.as_deref(), Some("_INBOX.me"));
    }

    /// A requested context overrides addresses and credentials of the environment, unless a flag names an address.
    #[test]
    fn context_requested_by_name_overrides_environment() {
        let home = Home::new();
        home.context("prod", r#"{"url":"nats://a:4222","user":"u","password":"p"}"#);
        home.context("bare", "{}");
        let environment = NatsArgs {
            nats: vec![Secret::new("nats://elsewhere:1")],
            nats_token: Some(Secret::new("t")),
            nats_ca: Some(PathBuf::from("/env.pem")),
            ..NatsArgs::default()
        };
        let made = home.contexts().complete(environment.clone(), &named_context("prod", "")).unwrap();
        assert_eq!((addresses(&made), made.nats_user.as_deref()), (vec!["nats://a:4222"], Some("u")));
        assert!(made.nats_token.is_none(), "{made:?}");
        // The environment sets what the context leaves open, except secrets.
        assert_eq!(made.nats_ca, Some(PathBuf::from("/env.pem")));
        // The credentials of the environment do not go to the default address of a context without one.
        let made = home.contexts().complete(environment.clone(), &named_context("bare", "")).unwrap();
        assert_eq!(addresses(&made), [NatsOptions::DEFAULT_URL]);

        // A context from the variable has the same effect, unless a flag names an address.
        let mut selection =
            ContextSelection { context: Some("prod".to_owned()), ..ContextSelection::default() };
        let made = home.contexts().complete(environment.clone(), &selection).unwrap();
        assert_eq!(addresses(&made), ["nats://a:4222"]);
        selection.flags.insert("nats".to_owned());
        let made = home.contexts().complete(environment, &selection).unwrap();
        assert_eq!((addresses(&made), made.nats_user.as_deref()), (vec!["nats://elsewhere:1"], None));
    }

    /// A context with unsupported credentials is rejected, unless a flag gives credentials.
    #[test]
    fn context_with_unsupported_credentials_is_rejected() {
        let home = Home::new();
        home.context("nsc", r#"{"url":"nats://a:4222","nsc":"nsc://operator/account/user"}"#);
        home.context("jwt", r#"{"url":"nats://a:4222","user_jwt":"eyJ0"}"#);
        for name in ["nsc", "jwt"] {
            let refused =
                home.contexts().complete(NatsArgs::default(), &named_context(name, "")).unwrap_err();
            assert!(refused.to_string().contains("not supported"), "{refused}");
        }
        let flags = NatsArgs { nats_creds: Some(PathBuf::from("/c")), ..NatsArgs::default() };
        home.contexts().complete(flags, &named_context("nsc", "nats-creds")).unwrap();
    }

    /// The selected context applies only if no address is given by flag or environment.
    #[test]
    fn context_selection_applies_only_without_address() {
        let home = Home::new();
        home.context("prod", r#"{"url":"nats://a:4222","user":"u","password":"p"}"#);
        home.select("prod\n");
        let contexts = home.contexts();
        let made = contexts.complete(NatsArgs::default(), &ContextSelection::default()).unwrap();
        assert_eq!((addresses(&made), made.nats_user.as_deref()), (vec!["nats://a:4222"], Some("u")));
        let made = contexts
            .complete(
                NatsArgs::default(),
                &ContextSelection { nats_url_set: true, ..ContextSelection::default() },
            )
            .unwrap();
        assert!(made.nats.is_empty() && made.nats_user.is_none(), "{made:?}");
        let flag = NatsArgs { nats: vec![Secret::new("nats://flag:1")], ..NatsArgs::default() };
        let made = contexts.complete(flag, &ContextSelection::default()).unwrap();
        assert!(made.nats_user.is_none(), "{made:?}");
    }

    /// If no context is selected, the connection arguments stay unchanged.
    #[test]
    fn context_absent_leaves_arguments_unchanged() {
        let home = Home::new();
        assert!(
            home.contexts()
                .complete(NatsArgs::default(), &ContextSelection::default())
                .unwrap()
                .nats
                .is_empty()
        );
        let nowhere = Contexts::new(None, None);
        assert!(nowhere.complete(NatsArgs::default(), &ContextSelection::default()).unwrap().nats.is_empty());
    }

    /// `XDG_CONFIG_HOME` determines the directory of the contexts.
    #[test]
    fn context_directory_follows_xdg_config_home() {
        let home = Home::new();
        home.context("prod", r#"{"url":"nats://a:4222"}"#);
        let contexts = Contexts::new(Some(home.0.path().join(".config")), Some(PathBuf::from("/nowhere")));
        assert_eq!(
            addresses(&contexts.complete(NatsArgs::default(), &named_context("prod", "")).unwrap()),
            ["nats://a:4222"]
        );
    }

    /// The error for a missing, malformed or misnamed context names the context.
    #[test]
    fn context_error_names_the_context() {
        let home = Home::new();
        home.context("bad", "{");
        let fail =
            |name| home.contexts().complete(NatsArgs::default(), &named_context(name, "")).unwrap_err();
        assert!(fail("missing").to_string().contains("there is no NATS context \"missing\""));
        assert!(fail("bad").to_string().contains("bad.json is not a NATS context"));
        assert!(fail("../bad").to_string().contains("not a valid name"));
        assert!(fail("").to_string().contains("not a valid name"));
        home.select("missing");
        assert!(home.contexts().complete(NatsArgs::default(), &ContextSelection::default()).is_err());
    }

    /// The debug output of a context contains no secret.
    #[test]
    fn context_debug_output_hides_secrets() {
        let context: Context = serde_json::from_str(r#"{"password":"hunter2","token":"hunter2"}"#).unwrap();
        assert!(!format!("{context:?}").contains("hunter2"));
    }
}
