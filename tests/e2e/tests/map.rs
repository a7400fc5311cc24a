//! Each test that the documents name must exist, and each link target too: a table without a check soon becomes wrong.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

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

fn document(name: &str) -> String {
    std::fs::read_to_string(dormouse_harness::workspace_root().join(name)).unwrap()
}

/// Returns the text between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns the tests that a document names.
fn tests_named(text: &str) -> Vec<&str> {
    quoted(text)
        .filter(|word| word.matches('_').count() > 2 && !word.contains(['.', '/', ' ', ':', '=']))
        .collect()
}

/// Each test that ARCHITECTURE.md and docs/guarantees.md name exists in the source.
#[test]
fn tests_named_in_the_documents_exist() {
    let root = dormouse_harness::workspace_root();
    let mut functions = BTreeSet::new();
    collect_functions(&root.join("crates"), &mut functions);
    collect_functions(&root.join("tests"), &mut functions);

    let map = document("ARCHITECTURE.md");
    let tables = map.split_once("## Guarantees, and the tests").expect("ARCHITECTURE.md has its tables").1;
    let guarantees = document("docs/guarantees.md");
    for (name, text) in [("ARCHITECTURE.md", tables), ("docs/guarantees.md", guarantees.as_str())] {
        let named = tests_named(text);
        assert!(named.len() > 20, "the tests of {name} were not found");
        let missing: Vec<&&str> = named.iter().filter(|test| !functions.contains(**test)).collect();
        assert!(missing.is_empty(), "{name} names missing tests: {missing:?}");
    }
}

/// The rules that docs/guarantees.md names are exactly the broken rules of the model.
#[test]
fn proof_rules_match_the_broken_rules_of_the_model() {
    let guarantees = document("docs/guarantees.md");
    let rules = guarantees.split_once("### The rules").expect("the section with the rules").1;
    let is_rule = |word: &&str| word.starts_with(|c: char| c.is_ascii_uppercase()) && word.len() > 10;
    let named: BTreeSet<&str> = quoted(rules).filter(is_rule).filter(|word| !word.contains('_')).collect();
    let model = document("tests/model/src/settings.rs");
    let variants = model
        .split_once("pub enum BrokenRule {")
        .expect("the enum of the rules")
        .1
        .split_once('}')
        .unwrap()
        .0;
    let is_name = |line: &&str| !line.is_empty() && line.chars().all(char::is_alphanumeric);
    let variants: BTreeSet<&str> =
        variants.lines().map(|line| line.trim().trim_end_matches(',')).filter(is_name).collect();
    assert_eq!(named, variants);
}

/// Each relative link in the documents points to an existing file.
#[test]
fn document_links_point_to_existing_files() {
    let root = dormouse_harness::workspace_root();
    let mut pages: Vec<PathBuf> = [
        "README.md",
        "ARCHITECTURE.md",
        "PROTOCOL.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "deploy/README.md",
        "deploy/nats/README.md",
    ]
    .map(PathBuf::from)
    .to_vec();
    for folder in ["docs", "docs/adr"] {
        let entries = std::fs::read_dir(root.join(folder)).unwrap();
        let found = entries.map(|entry| Path::new(folder).join(entry.unwrap().file_name()));
        pages.extend(found.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    let mut broken = Vec::new();
    for page in &pages {
        let text = std::fs::read_to_string(root.join(page)).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0)) {
            let file = link.split('#').next().unwrap_or_default();
            let there = root.join(page).parent().unwrap().join(file).exists();
            if !file.is_empty() && !link.contains("://") && !there {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
