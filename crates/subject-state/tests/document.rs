//! Checks that `docs/formats.md` has the SQLite schema.

use std::fs;
use std::path::Path;

/// If this variable is set, the test writes the schema into the document, after an intended change.
const WRITE: &str = "DORMOUSE_WRITE_GOLDEN";

/// The SQLite schema, application id and schema version match `docs/formats.md`.
#[test]
fn sqlite_schema_matches_document() {
    let source = include_str!("../src/database/schema.rs");
    let (_, create) = source.split_once("CREATE: &str = \"\n").unwrap();
    let (create, _) = create.split_once("\";\n").unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats.md");
    let document = fs::read_to_string(&path).unwrap();
    let (before, rest) = document.split_once("```sql\n").unwrap();
    let (documented, after) = rest.split_once("```\n").unwrap();
    if std::env::var_os(WRITE).is_some() && documented != create {
        fs::write(path, format!("{before}```sql\n{create}```\n{after}")).unwrap();
        return;
    }
    assert_eq!(documented, create, "docs/formats.md has other tables ({WRITE}=1 writes them)");
    let number = |name: &str| {
        let (_, value) = source.split_once(&format!("{name}: i32 = ")).unwrap();
        value.split_once(';').unwrap().0.replace('_', "")
    };
    for stated in [number("APPLICATION_ID"), format!("`user_version` is {}", number("SCHEMA_VERSION"))] {
        assert!(document.contains(&stated), "{stated}");
    }
}
