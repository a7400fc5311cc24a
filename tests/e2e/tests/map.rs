//! What ARCHITECTURE.md says is tested must be a test: a table that nothing holds soon lies.

use std::collections::BTreeSet;
use std::path::Path;

fn collect_functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            names.extend(
                text.split("fn ").skip(1).filter_map(|rest| Some(rest.split_once(['(', '<'])?.0.to_owned())),
            );
        }
    }
}

#[test]
fn every_test_that_the_map_names_exists() {
    let root = dormouse_harness::workspace_root();
    let mut functions = BTreeSet::new();
    collect_functions(&root.join("crates"), &mut functions);
    collect_functions(&root.join("tests"), &mut functions);

    let map = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let tables = map.split_once("## Promises, and the tests").expect("the map has its tables").1;
    let named: Vec<&str> = tables
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.matches('_').count() > 2 && !word.contains(['.', '/', ' ']))
        .collect();
    assert!(named.len() > 20, "the tables were not found");
    let missing: Vec<&&str> = named.iter().filter(|name| !functions.contains(**name)).collect();
    assert!(missing.is_empty(), "named in ARCHITECTURE.md, but no test: {missing:?}");
}
