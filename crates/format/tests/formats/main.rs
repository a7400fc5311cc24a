//! Stored formats: frozen bytes, detection of damage, and the document of the formats.

mod corpus;
mod damage;
mod document;
mod frozen;
#[path = "../fuzzing/mod.rs"]
mod fuzzing;
mod golden;
mod hostile;
mod parts;
mod random;
mod samples;
mod table;
