//! Tenants: whose share of a server and of the coordinator a request uses; the limits and the use of a tenant.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::limits::{MAX_TENANT_NAME_BYTES, MAX_TENANT_TOKENS};
use crate::subject::Subject;

/// The number of digits of the digest in the name of a tenant whose own name is too long.
const DIGEST_DIGITS: usize = 32;

/// The name of a tenant: a NATS account, or the first tokens of a subject.
///
/// It has 1 to [`MAX_TENANT_NAME_BYTES`] bytes of UTF-8, without white space and control characters. Cloning is cheap: the
/// name is shared.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantName(Arc<str>);

/// The text is not the name of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tenant name has 1 to {MAX_TENANT_NAME_BYTES} bytes, without white space and control characters")]
pub struct InvalidTenantName;

impl TenantName {
    /// The name of all tenants that have no record of their own: callers without an account, and the tenants above the
    /// maximum number of records. No subject begins with this text.
    pub const SHARED: &'static str = "*";

    /// Validates `name`.
    ///
    /// # Errors
    /// [`InvalidTenantName`] if the name violates a rule of [`TenantName`].
    pub fn new(name: &str) -> Result<Self, InvalidTenantName> {
        if is_valid(name) { Ok(Self(name.into())) } else { Err(InvalidTenantName) }
    }

    /// The name [`TenantName::SHARED`].
    #[must_use]
    pub fn shared() -> Self {
        Self(Self::SHARED.into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is [`TenantName::SHARED`].
    #[must_use]
    pub fn is_shared(&self) -> bool {
        &*self.0 == Self::SHARED
    }
}

fn is_valid(name: &str) -> bool {
    let illegal = |c: char| c.is_whitespace() || c.is_control();
    !name.is_empty() && name.len() <= MAX_TENANT_NAME_BYTES && !name.contains(illegal)
}

/// The text as the name of a tenant. Text that is not a valid name becomes its first characters, `*`, and digits of its
/// SHA-256: no subject contains `*`, so two tenants never get the same name.
fn to_name(text: &str) -> Cow<'_, str> {
    if is_valid(text) {
        return Cow::Borrowed(text);
    }
    let mut digest = hex::encode(Sha256::digest(text.as_bytes()));
    digest.truncate(DIGEST_DIGITS);
    let mut name = String::with_capacity(MAX_TENANT_NAME_BYTES);
    for c in text.chars().filter(|c| !c.is_whitespace() && !c.is_control()) {
        if name.len() + c.len_utf8() + 1 + DIGEST_DIGITS > MAX_TENANT_NAME_BYTES {
            break;
        }
        name.push(c);
    }
    name.push('*');
    name.push_str(&digest);
    Cow::Owned(name)
}

impl Borrow<str> for TenantName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for TenantName {
    type Err = InvalidTenantName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

crate::stored_as_text!(TenantName);

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TenantName({})", self.0)
    }
}

/// Which part of a request names its tenant. All programs of a fleet have the same rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantRule {
    /// The NATS account, as nats-server writes it into the request.
    Account,
    /// The first tokens of the subject: this number, or all tokens of a shorter subject.
    Tokens(usize),
}

impl Default for TenantRule {
    /// The first token.
    fn default() -> Self {
        Self::Tokens(1)
    }
}

/// The number of tokens is not 1 to [`MAX_TENANT_TOKENS`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a number from 1 to {MAX_TENANT_TOKENS}")]
pub struct InvalidTenantTokens(String);

impl TenantRule {
    /// Reads the number of tokens, as an operator writes it.
    ///
    /// # Errors
    /// [`InvalidTenantTokens`] if it is not a number from 1 to [`MAX_TENANT_TOKENS`].
    pub fn parse_tokens(text: &str) -> Result<Self, InvalidTenantTokens> {
        match text.parse() {
            Ok(tokens @ 1..=MAX_TENANT_TOKENS) => Ok(Self::Tokens(tokens)),
            Ok(_) | Err(_) => Err(InvalidTenantTokens(text.to_owned())),
        }
    }

    /// The name of the tenant of a request about `subject`, as text for look-ups: a valid [`TenantName`], mostly without an
    /// allocation. `account` is the caller's account, if the caller has one that can be trusted.
    #[must_use]
    pub fn tenant_text<'a>(self, account: Option<&'a str>, subject: &'a Subject) -> Cow<'a, str> {
        match self {
            Self::Account => to_name(account.unwrap_or(TenantName::SHARED)),
            Self::Tokens(number) => {
                let name = subject.as_str();
                let end = name.match_indices('.').nth(number.saturating_sub(1)).map(|(position, _)| position);
                to_name(&name[..end.unwrap_or(name.len())])
            }
        }
    }

    /// The tenant of a request about `subject`; see [`TenantRule::tenant_text`].
    #[must_use]
    pub fn tenant_of(self, account: Option<&str>, subject: &Subject) -> TenantName {
        TenantName(self.tenant_text(account, subject).as_ref().into())
    }
}

/// The limits that an operator has set for a tenant. Each server enforces them for itself. Without a limit, the tenant gets
/// the server's usual share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TenantLimits {
    /// Unanswered requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Bytes of unanswered requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Open subjects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_subjects: Option<u64>,
    /// New subjects in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creations_per_minute: Option<u64>,
    /// Written messages in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages_per_second: Option<u64>,
    /// Bytes of the open subjects' stored messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
    /// Bytes of writes that are not in the bucket yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unshipped_bytes: Option<u64>,
    /// Uploads in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploads: Option<u64>,
}

impl TenantLimits {
    /// No limit is set.
    pub const NONE: Self = Self {
        requests: None,
        bytes: None,
        open_subjects: None,
        creations_per_minute: None,
        messages_per_second: None,
        stored_bytes: None,
        unshipped_bytes: None,
        uploads: None,
    };

    /// Whether no limit is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    /// These limits, replaced by each limit that `newer` has.
    #[must_use]
    pub fn updated(self, newer: Self) -> Self {
        Self {
            requests: newer.requests.or(self.requests),
            bytes: newer.bytes.or(self.bytes),
            open_subjects: newer.open_subjects.or(self.open_subjects),
            creations_per_minute: newer.creations_per_minute.or(self.creations_per_minute),
            messages_per_second: newer.messages_per_second.or(self.messages_per_second),
            stored_bytes: newer.stored_bytes.or(self.stored_bytes),
            unshipped_bytes: newer.unshipped_bytes.or(self.unshipped_bytes),
            uploads: newer.uploads.or(self.uploads),
        }
    }
}

/// A tenant and the limits that an operator has set for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitedTenant {
    /// The tenant.
    pub tenant: TenantName,
    /// Its limits.
    pub limits: TenantLimits,
}

/// A digest of the limits of all tenants: equal limits have equal revisions, also after the coordinator has lost its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LimitsRevision(u64);

impl LimitsRevision {
    /// The revision if no tenant has limits.
    pub const NONE: Self = Self(0);

    /// Whether no tenant has limits.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.0 == 0
    }

    /// The revision after the limits of a tenant are added to the others, or removed from them. Empty limits change nothing.
    #[must_use]
    pub fn toggled(self, tenant: &TenantName, limits: &TenantLimits) -> Self {
        if limits.is_empty() {
            return self;
        }
        let figures = [
            limits.requests,
            limits.bytes,
            limits.open_subjects,
            limits.creations_per_minute,
            limits.messages_per_second,
            limits.stored_bytes,
            limits.unshipped_bytes,
            limits.uploads,
        ];
        let mut digest = Sha256::new();
        digest.update(tenant.as_str());
        for figure in figures {
            // An absent limit differs from each number.
            digest.update(figure.map_or([0xff; 9], |figure| {
                let [a, b, c, d, e, f, g, h] = figure.to_be_bytes();
                [0, a, b, c, d, e, f, g, h]
            }));
        }
        let digest = digest.finalize();
        let number = digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
        // 53 bits: every language holds the number exactly.
        Self(self.0 ^ (number >> 11))
    }

    /// The revision of these limits.
    #[must_use]
    pub fn of<'a>(limits: impl IntoIterator<Item = (&'a TenantName, &'a TenantLimits)>) -> Self {
        limits.into_iter().fold(Self::NONE, |revision, (tenant, limits)| revision.toggled(tenant, limits))
    }
}

/// What a tenant uses now. [`TenantLimits`] has a limit for each of the first eight figures, under the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TenantUse {
    /// Unanswered requests.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub requests: u64,
    /// Bytes of unanswered requests.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes: u64,
    /// Open subjects.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub open_subjects: u64,
    /// New subjects in the last minute.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub creations_per_minute: u64,
    /// Written messages in the last second.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub messages_per_second: u64,
    /// Bytes of the open subjects' stored messages.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stored_bytes: u64,
    /// Bytes of writes that are not in the bucket yet.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unshipped_bytes: u64,
    /// Uploads in progress.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uploads: u64,
    /// Requests in the last second.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub requests_per_second: u64,
    /// Requests that a server refused because of the tenant's share, since the process started.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refused: u64,
}

impl TenantUse {
    /// The sum with the use at another server. Saturating.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            bytes: self.bytes.saturating_add(other.bytes),
            open_subjects: self.open_subjects.saturating_add(other.open_subjects),
            creations_per_minute: self.creations_per_minute.saturating_add(other.creations_per_minute),
            messages_per_second: self.messages_per_second.saturating_add(other.messages_per_second),
            stored_bytes: self.stored_bytes.saturating_add(other.stored_bytes),
            unshipped_bytes: self.unshipped_bytes.saturating_add(other.unshipped_bytes),
            uploads: self.uploads.saturating_add(other.uploads),
            requests_per_second: self.requests_per_second.saturating_add(other.requests_per_second),
            refused: self.refused.saturating_add(other.refused),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref)] // serde passes a reference.
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A tenant and what it uses at one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusyTenant {
    /// The tenant.
    pub tenant: TenantName,
    /// Its use.
    #[serde(rename = "use")]
    pub in_use: TenantUse,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::MAX_SUBJECT_BYTES;

    fn subject(name: &str) -> Subject {
        Subject::new(name).unwrap()
    }

    /// The tenant is the first tokens of the subject, and a short subject is its own tenant.
    #[test]
    fn tenant_by_tokens_is_start_of_subject() {
        for (tokens, name, tenant) in [
            (1, "app.orders.eu", "app"),
            (2, "app.orders.eu", "app.orders"),
            (3, "app.orders.eu", "app.orders.eu"),
            (4, "app.orders.eu", "app.orders.eu"),
            (1, "app", "app"),
        ] {
            let rule = TenantRule::Tokens(tokens);
            assert_eq!(rule.tenant_of(None, &subject(name)).as_str(), tenant, "{tokens} of {name}");
            assert_eq!(
                rule.tenant_of(Some("acme"), &subject(name)).as_str(),
                tenant,
                "the account is ignored"
            );
        }
    }

    /// The tenant is the account, and callers without an account share one tenant.
    #[test]
    fn tenant_by_account_ignores_subject() {
        let rule = TenantRule::Account;
        assert_eq!(rule.tenant_of(Some("acme"), &subject("acme.orders")).as_str(), "acme");
        let unknown = rule.tenant_of(None, &subject("acme.orders"));
        assert!(unknown.is_shared());
        assert_eq!(unknown, TenantName::shared());
    }

    /// A name that is too long or has illegal characters becomes a short valid name, and distinct names stay distinct.
    #[test]
    fn tenant_name_too_long_becomes_distinct_digest() {
        let long = ["é", "a"].map(|end| subject(&format!("{}{end}", "é".repeat(MAX_SUBJECT_BYTES / 2 - 1))));
        let [one, other] = long.map(|subject| TenantRule::default().tenant_of(None, &subject));
        assert_ne!(one, other);
        for name in [one, other, TenantRule::Account.tenant_of(Some("two words"), &subject("a"))] {
            assert_eq!(TenantName::new(name.as_str()), Ok(name.clone()));
            assert!(name.as_str().contains('*') && name.as_str().len() <= MAX_TENANT_NAME_BYTES, "{name}");
        }
    }

    /// The name of a tenant rejects empty and long text, white space and control characters.
    #[test]
    fn tenant_name_with_hostile_text_is_rejected() {
        let long = "a".repeat(MAX_TENANT_NAME_BYTES + 1);
        for text in ["", "a b", "a\n", "\u{7f}", &long] {
            assert_eq!(TenantName::new(text), Err(InvalidTenantName), "{text:?}");
        }
        assert!(TenantName::new(&long[1..]).is_ok());
    }

    /// The number of tokens is 1 to the maximum.
    #[test]
    fn tenant_tokens_must_be_one_to_maximum() {
        assert_eq!(TenantRule::parse_tokens("2"), Ok(TenantRule::Tokens(2)));
        for text in ["0", "-1", "x", "", "1.5", &(MAX_TENANT_TOKENS + 1).to_string()] {
            let error = TenantRule::parse_tokens(text).unwrap_err();
            assert_eq!(error.to_string(), format!("{text:?} is not a number from 1 to 16"));
        }
    }

    /// The revision depends on the limits of all tenants, and not on the order of the changes that led to them.
    #[test]
    fn limits_revision_follows_content_of_limits() {
        let [a, b] = ["a", "b"].map(|name| TenantName::new(name).unwrap());
        let few = TenantLimits { requests: Some(1), ..TenantLimits::NONE };
        let other = TenantLimits { bytes: Some(1), ..TenantLimits::NONE };
        let both = LimitsRevision::of([(&a, &few), (&b, &other)]);
        assert_eq!(both, LimitsRevision::of([(&b, &other), (&a, &few)]));
        assert_eq!(both.toggled(&a, &few), LimitsRevision::of([(&b, &other)]));
        assert_eq!(both.toggled(&a, &few).toggled(&b, &other), LimitsRevision::NONE);
        assert_eq!(both.toggled(&TenantName::shared(), &TenantLimits::NONE), both);
        let all = [(&a, &few), (&a, &other), (&b, &few), (&b, &other)].map(|one| LimitsRevision::of([one]));
        assert!(all.iter().enumerate().all(|(n, one)| !one.is_none() && !all[..n].contains(one)), "{all:?}");
        assert!(all.iter().all(|one| one.0 < 1 << 53));
    }

    /// An update replaces the limits that it has, and keeps the others.
    #[test]
    fn tenant_limits_update_keeps_other_limits() {
        let limits = TenantLimits { requests: Some(1), bytes: Some(2), ..TenantLimits::NONE };
        let newer = TenantLimits { bytes: Some(3), uploads: Some(4), ..TenantLimits::NONE };
        let expected =
            TenantLimits { requests: Some(1), bytes: Some(3), uploads: Some(4), ..TenantLimits::NONE };
        assert_eq!(limits.updated(newer), expected);
        assert_eq!(TenantLimits::NONE.updated(limits), limits);
        assert!(TenantLimits::NONE.is_empty() && !limits.is_empty());
    }

    /// The sum of two uses adds each figure.
    #[test]
    fn tenant_use_sum_adds_each_figure() {
        let one: TenantUse = all_figures(1);
        assert_eq!(one.plus(one), all_figures(2));
        assert_eq!(one.plus(TenantUse { refused: u64::MAX, ..TenantUse::default() }).refused, u64::MAX);
    }

    fn all_figures(number: u64) -> TenantUse {
        TenantUse {
            requests: number,
            bytes: number,
            open_subjects: number,
            creations_per_minute: number,
            messages_per_second: number,
            stored_bytes: number,
            unshipped_bytes: number,
            uploads: number,
            requests_per_second: number,
            refused: number,
        }
    }

    proptest! {
        /// Each subject and account yields a valid tenant name under each rule.
        #[test]
        fn tenant_of_any_request_is_valid(
            name in "[^*>\\s\\p{C}.]{1,80}(\\.[^*>\\s\\p{C}.]{1,40}){0,3}",
            account in any::<String>(),
            tokens in 0_usize..5,
        ) {
            if let Ok(subject) = Subject::new(&name) {
                for rule in [TenantRule::Account, TenantRule::Tokens(tokens)] {
                    let tenant = rule.tenant_of(Some(&account), &subject);
                    prop_assert_eq!(TenantName::new(tenant.as_str()), Ok(tenant));
                }
            }
        }
    }
}
