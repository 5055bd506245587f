//! What the observer is built from: nothing that can write to etcd, nothing of the broker or the
//! store (invariant 10).

use std::process::Command;

fn tree(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package", "strandline-mcp", "--edges", "normal", "--prefix", "none"])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints text")
}

#[test]
fn it_depends_neither_on_the_broker_nor_on_the_store() {
    let tree = tree(&["--format", "{p}"]);
    assert!(tree.contains("strandline-metadata"), "{tree}");
    for banned in ["strandline-storage", "strandline-broker", "kafka-protocol", "object_store"] {
        assert!(!tree.lines().any(|line| line.starts_with(banned)), "the observer depends on {banned}");
    }
}

#[test]
fn metadata_is_built_without_what_writes() {
    let tree = tree(&["--format", "{p} features={f}"]);
    let lines: Vec<&str> = tree.lines().filter(|l| l.starts_with("strandline-metadata ")).collect();
    assert!(!lines.is_empty());
    for line in lines {
        let features = line.split_once("features=").map_or("", |(_, f)| f.trim_end_matches(" (*)"));
        assert!(!features.split(',').any(|f| ["log", "default", "etcd-api"].contains(&f)), "{line}");
    }
}
