//! FAULTS.md names tests: each of them exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn every_test_that_the_table_of_faults_names_exists() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(own.join("FAULTS.md")).expect("the table is beside this package");
    let names: BTreeSet<&str> = table
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| {
            name.len() > 12 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .collect();
    assert!(names.len() > 40, "the table names tests: {names:?}");
    let mut sources = String::new();
    for package in ["storage", "metadata", "broker", "tests"] {
        collect(&own.join("..").join(package), &mut sources);
    }
    let missing: Vec<&&str> = names.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "no test is called {missing:?}");
}

fn collect(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder of this repository").flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push_str(&fs::read_to_string(&path).unwrap_or_default());
        }
    }
}
