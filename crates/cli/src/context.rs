//! Contexts of the `nats` command line tool: where it keeps address and credentials by name.
//!
//! `<config>/nats/context.txt` holds the name of the selected context and `<config>/nats/context/<name>.json` each
//! context, where `<config>` is `$XDG_CONFIG_HOME` or else `~/.config`.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use dormouse_bus::args::NatsArgs;
use dormouse_bus::nats::{NatsOptions, Secret};
use serde::{Deserialize, Deserializer};

use crate::error::Failure;

/// Where the contexts are.
#[derive(Debug, Clone)]
pub struct Contexts {
    /// `<config>/nats`, if there is such a place.
    directory: Option<PathBuf>,
    home: Option<PathBuf>,
}

/// What we understand of a context. Empty texts count as absent, as the `nats` tool writes them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Context {
    url: Text,
    creds: Text,
    nkey: Text,
    user: Text,
    password: Text,
    token: Text,
    cert: Text,
    key: Text,
    ca: Text,
    inbox_prefix: Text,
    nsc: Text,
    user_jwt: Text,
}

/// What the user said about contexts.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// The context asked for, by flag or variable.
    pub context: Option<String>,
    /// The flags of the connection that stand on the command line itself.
    pub flags: BTreeSet<String>,
    /// The variable `NATS_URL` gives an address.
    pub nats_url_set: bool,
}

impl Wish {
    fn flag(&self, name: &str) -> bool {
        self.flags.contains(name)
    }
}

/// A text that may be absent, null or empty, all of which mean the same. It may be a secret and is never printed.
#[derive(Clone, Default)]
struct Text(Option<String>);

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "(given)" } else { "(absent)" })
    }
}

impl<'de> Deserialize<'de> for Text {
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

    /// Completes `arguments`, which come from flags and the environment. Flags win over the context that was asked for,
    /// which wins over the environment. The context that is merely selected counts only where nothing else gives an
    /// address: credentials of one system are not sent to another unasked.
    ///
    /// # Errors
    /// [`Failure`] when the context does not exist, cannot be read, or cannot be used by us.
    pub fn complete(&self, arguments: NatsArgs, wish: &Wish) -> Result<NatsArgs, Failure> {
        match &wish.context {
            Some(name) if wish.flag("context") || !wish.flag("nats") => {
                let context = self.read(name)?;
                self.merge(name, context, flags_only(&arguments, wish), arguments)
            }
            // A flag names another address than the variable's context.
            Some(_) => Ok(arguments),
            None if !arguments.nats.is_empty() || wish.nats_url_set => Ok(arguments),
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
            return Err(Failure::usage(format!("{name:?} cannot be the name of a NATS context")));
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

    /// `strong` wins over the context, which wins over `weak`; of `weak` neither address nor credentials are taken.
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
            // Only one of the ways can be used; the `nats` tool looks at them in this order.
            if let Some(user) = context.user.0 {
                arguments.nats_user = Some(user);
                arguments.nats_password = context.password.0.map(Secret::new);
            } else if let Some(token) = context.token.0 {
                arguments.nats_token = Some(Secret::new(token));
            } else if let Some(creds) = context.creds.0 {
                arguments.nats_creds = Some(self.path(&creds));
            } else if let Some(nkey) = context.nkey.0 {
                arguments.nats_nkey = Some(self.path(&nkey));
            } else if let Some(way) = unsupported(&context.nsc, &context.user_jwt) {
                return Err(Failure::usage(format!(
                    "the NATS context {name:?} authenticates with `{way}`, which is not supported: give a credentials \
                     file with --nats-creds"
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

    /// A path as the `nats` tool reads it: `~/` is the home directory.
    fn path(&self, text: &str) -> PathBuf {
        match (text.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(text),
        }
    }
}

/// The way of a context to authenticate that we cannot follow.
fn unsupported(nsc: &Text, user_jwt: &Text) -> Option<&'static str> {
    nsc.0.as_ref().map(|_| "nsc").or_else(|| user_jwt.0.as_ref().map(|_| "user_jwt"))
}

/// The arguments without what comes from the environment.
fn flags_only(arguments: &NatsArgs, wish: &Wish) -> NatsArgs {
    fn of_line<T: Clone>(value: Option<&T>, is_flag: bool) -> Option<T> {
        value.filter(|_| is_flag).cloned()
    }
    NatsArgs {
        nats: if wish.flag("nats") { arguments.nats.clone() } else { Vec::new() },
        nats_user: of_line(arguments.nats_user.as_ref(), wish.flag("nats-user")),
        nats_password: of_line(arguments.nats_password.as_ref(), wish.flag("nats-password")),
        nats_token: of_line(arguments.nats_token.as_ref(), wish.flag("nats-token")),
        nats_nkey: of_line(arguments.nats_nkey.as_ref(), wish.flag("nats-nkey")),
        nats_creds: of_line(arguments.nats_creds.as_ref(), wish.flag("nats-creds")),
        nats_tls: arguments.nats_tls && wish.flag("nats-tls"),
        nats_ca: of_line(arguments.nats_ca.as_ref(), wish.flag("nats-ca")),
        nats_cert: of_line(arguments.nats_cert.as_ref(), wish.flag("nats-cert")),
        nats_key: of_line(arguments.nats_key.as_ref(), wish.flag("nats-key")),
        nats_inbox_prefix: of_line(arguments.nats_inbox_prefix.as_ref(), wish.flag("nats-inbox-prefix")),
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

    /// `--context` with this name, and these other flags.
    fn asked(context: &str, flags: &str) -> Wish {
        let flags = flags.split_whitespace().chain(["context"]).map(str::to_owned).collect();
        Wish { context: Some(context.to_owned()), flags, nats_url_set: false }
    }

    fn addresses(arguments: &NatsArgs) -> Vec<&str> {
        arguments.nats.iter().map(Secret::reveal).collect()
    }

    #[test]
    fn a_named_context_gives_everything_the_flags_leave_open() {
        let home = Home::new();
        home.context(
            "prod",
            r#"{"description":"x","url":"tls://a:4222, tls://b:4222","creds":"~/prod.creds","user":"","nkey":"",
                "token":null,"cert":"/c.pem","key":"/k.pem","ca":"/ca.pem","inbox_prefix":"_INBOX.me","jetstream_domain":""}"#,
        );
        let made = home.contexts().complete(NatsArgs::default(), &asked("prod", "")).unwrap();
        assert_eq!(addresses(&made), ["tls://a:4222", "tls://b:4222"]);
        assert_eq!(made.nats_creds, Some(home.0.path().join("prod.creds")));
        assert_eq!(made.nats_cert, Some(PathBuf::from("/c.pem")));
        assert_eq!(made.nats_key, Some(PathBuf::from("/k.pem")));
        assert_eq!(made.nats_ca, Some(PathBuf::from("/ca.pem")));
        assert_eq!(made.nats_inbox_prefix.as_deref(), Some("_INBOX.me"));
        assert!(made.nats_user.is_none() && made.nats_token.is_none() && made.nats_nkey.is_none());
        made.resolve().unwrap();
    }

    #[test]
    fn flags_win_over_the_context() {
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
        let made = home.contexts().complete(flags, &asked("prod", "nats nats-token nats-ca")).unwrap();
        assert_eq!(addresses(&made), ["nats://flag:1"]);
        assert!(made.nats_user.is_none() && made.nats_password.is_none());
        assert_eq!(made.nats_ca, Some(PathBuf::from("/flag.pem")));
        assert_eq!(made.nats_inbox_prefix.as_deref(), Some("_INBOX.me"));
    }

    #[test]
    fn a_context_that_was_asked_for_wins_over_the_environment() {
        let home = Home::new();
        home.context("prod", r#"{"url":"nats://a:4222","user":"u","password":"p"}"#);
        home.context("bare", "{}");
        let environment = NatsArgs {
            nats: vec![Secret::new("nats://elsewhere:1")],
            nats_token: Some(Secret::new("t")),
            nats_ca: Some(PathBuf::from("/env.pem")),
            ..NatsArgs::default()
        };
        let made = home.contexts().complete(environment.clone(), &asked("prod", "")).unwrap();
        assert_eq!((addresses(&made), made.nats_user.as_deref()), (vec!["nats://a:4222"], Some("u")));
        assert!(made.nats_token.is_none(), "{made:?}");
        // What the context leaves open and is no secret.
        assert_eq!(made.nats_ca, Some(PathBuf::from("/env.pem")));
        // Not even a context without an address brings its credentials elsewhere.
        let made = home.contexts().complete(environment.clone(), &asked("bare", "")).unwrap();
        assert_eq!(addresses(&made), [NatsOptions::DEFAULT_URL]);

        // By variable it says the same, unless a flag names an address.
        let mut wish = Wish { context: Some("prod".to_owned()), ..Wish::default() };
        let made = home.contexts().complete(environment.clone(), &wish).unwrap();
        assert_eq!(addresses(&made), ["nats://a:4222"]);
        wish.flags.insert("nats".to_owned());
        let made = home.contexts().complete(environment, &wish).unwrap();
        assert_eq!((addresses(&made), made.nats_user.as_deref()), (vec!["nats://elsewhere:1"], None));
    }

    #[test]
    fn a_context_that_we_cannot_follow_is_refused() {
        let home = Home::new();
        home.context("nsc", r#"{"url":"nats://a:4222","nsc":"nsc://operator/account/user"}"#);
        home.context("jwt", r#"{"url":"nats://a:4222","user_jwt":"eyJ0"}"#);
        for name in ["nsc", "jwt"] {
            let refused = home.contexts().complete(NatsArgs::default(), &asked(name, "")).unwrap_err();
            assert!(refused.to_string().contains("not supported"), "{refused}");
        }
        let flags = NatsArgs { nats_creds: Some(PathBuf::from("/c")), ..NatsArgs::default() };
        home.contexts().complete(flags, &asked("nsc", "nats-creds")).unwrap();
    }

    #[test]
    fn the_selected_context_counts_only_where_no_address_is_given() {
        let home = Home::new();
        home.context("prod", r#"{"url":"nats://a:4222","user":"u","password":"p"}"#);
        home.select("prod\n");
        let contexts = home.contexts();
        let made = contexts.complete(NatsArgs::default(), &Wish::default()).unwrap();
        assert_eq!((addresses(&made), made.nats_user.as_deref()), (vec!["nats://a:4222"], Some("u")));
        let made =
            contexts.complete(NatsArgs::default(), &Wish { nats_url_set: true, ..Wish::default() }).unwrap();
        assert!(made.nats.is_empty() && made.nats_user.is_none(), "{made:?}");
        let flag = NatsArgs { nats: vec![Secret::new("nats://flag:1")], ..NatsArgs::default() };
        let made = contexts.complete(flag, &Wish::default()).unwrap();
        assert!(made.nats_user.is_none(), "{made:?}");
    }

    #[test]
    fn nothing_selected_leaves_the_arguments_alone() {
        let home = Home::new();
        assert!(home.contexts().complete(NatsArgs::default(), &Wish::default()).unwrap().nats.is_empty());
        let nowhere = Contexts::new(None, None);
        assert!(nowhere.complete(NatsArgs::default(), &Wish::default()).unwrap().nats.is_empty());
    }

    #[test]
    fn xdg_config_home_is_where_contexts_are() {
        let home = Home::new();
        home.context("prod", r#"{"url":"nats://a:4222"}"#);
        let contexts = Contexts::new(Some(home.0.path().join(".config")), Some(PathBuf::from("/nowhere")));
        assert_eq!(
            addresses(&contexts.complete(NatsArgs::default(), &asked("prod", "")).unwrap()),
            ["nats://a:4222"]
        );
    }

    #[test]
    fn a_bad_context_is_named() {
        let home = Home::new();
        home.context("bad", "{");
        let fail = |name| home.contexts().complete(NatsArgs::default(), &asked(name, "")).unwrap_err();
        assert!(fail("missing").to_string().contains("there is no NATS context \"missing\""));
        assert!(fail("bad").to_string().contains("bad.json is not a NATS context"));
        assert!(fail("../bad").to_string().contains("cannot be the name"));
        assert!(fail("").to_string().contains("cannot be the name"));
        home.select("missing");
        assert!(home.contexts().complete(NatsArgs::default(), &Wish::default()).is_err());
    }

    #[test]
    fn contexts_print_no_secret() {
        let context: Context = serde_json::from_str(r#"{"password":"hunter2","token":"hunter2"}"#).unwrap();
        assert!(!format!("{context:?}").contains("hunter2"));
    }
}
