//! What is stored: frozen bytes, damage that is noticed, and a document that says what is there.

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
