//! A disk that lies, for tests.
