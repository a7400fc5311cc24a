//! The stored format of this crate, the WAL part: detection of damage, and the document of the formats.
//! The tests of `dormouse-format` have the other formats, and the helpers.

#[path = "../../../format/tests/formats/corpus.rs"]
mod corpus;
mod damage;
mod document;
#[path = "../fuzzing/mod.rs"]
mod fuzzing;
#[path = "../../../format/tests/formats/golden.rs"]
mod golden;
#[path = "../../../format/tests/formats/hostile.rs"]
mod hostile;
#[path = "../../../format/tests/formats/table.rs"]
mod table;
