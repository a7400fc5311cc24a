//! Labels with a fixed list of values.

use std::fmt::Debug;

use dormouse_protocol::{ErrorCode, Level, Op};

/// A label. Each value of the type is one series of a metric.
///
/// `index` is the position of a value in `ALL`; a wrong one counts under another value, so [`crate::labels!`] writes
/// most implementations.
pub trait Label: Copy + Debug + Send + Sync + 'static {
    /// Name of the label.
    const NAME: &'static str;
    /// All values.
    const ALL: &'static [Self];

    /// The value as text.
    fn text(self) -> &'static str;

    /// The position of the value in [`Label::ALL`].
    fn index(self) -> usize;
}

/// Defines an enum that is a [`Label`].
///
/// ```
/// dormouse_metrics::labels! {
///     /// How a call ended.
///     pub enum CallOutcome as "outcome" {
///         /// It succeeded.
///         Ok = "ok",
///         /// It failed.
///         Failed = "failed",
///     }
/// }
/// use dormouse_metrics::Label;
/// assert_eq!((CallOutcome::NAME, CallOutcome::Failed.text(), CallOutcome::Failed.index()), ("outcome", "failed", 1));
/// ```
#[macro_export]
macro_rules! labels {
    ($(#[$doc:meta])* $vis:vis enum $name:ident as $label:literal {
        $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $crate::Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

impl Label for Op {
    const NAME: &'static str = "op";
    const ALL: &'static [Self] = Self::ALL;

    fn text(self) -> &'static str {
        self.as_str()
    }

    fn index(self) -> usize {
        // `Op::ALL` lists the variants in the order of their declaration.
        self as usize
    }
}

impl Label for Level {
    const NAME: &'static str = "level";
    const ALL: &'static [Self] = &Self::ALL;

    fn text(self) -> &'static str {
        self.as_str()
    }

    fn index(self) -> usize {
        // As for `Op`.
        self as usize
    }
}

/// The label of an error code: its name, or `other` for a code of a newer version.
#[must_use]
pub fn code_text(code: &ErrorCode) -> &str {
    match code {
        ErrorCode::Other(_) => "other",
        known => known.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index_is_position<L: Label>() {
        for (position, value) in L::ALL.iter().enumerate() {
            assert_eq!(value.index(), position, "{value:?}");
        }
    }

    /// The index of each label value is its position in the list.
    #[test]
    fn label_index_is_position_in_list() {
        index_is_position::<Op>();
        index_is_position::<Level>();
        index_is_position::<crate::steps::StepKind>();
    }
}
