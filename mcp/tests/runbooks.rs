//! Runbooks tell the truth: what they name exists.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says by ending what is wrong")]

use std::collections::BTreeSet;

use serde_json::Value;
use strandline_mcp::config::SETTINGS;
use strandline_mcp::diagnose::Code;
use strandline_mcp::runbooks::{Runbook, Runbooks};
use strandline_mcp::tools::{Tool, spec};
use strandline_metadata::topic_configs::TOPIC_CONFIGS;

/// What Kafka's clients and etcd call things, which runbooks name too.
const FOREIGN: &[&str] = &[
    "assign()",
    "auto.offset.reset",
    "etcd_disk_wal_fsync_duration_seconds",
    "fetch.min.bytes",
    "group.instance.id",
    "group.protocol=consumer",
    "isolation.level=read_committed",
    "kafka-transactions abort",
    "max.poll.interval.ms",
    "max.poll.records",
    "session.timeout.ms",
    "transaction.timeout.ms",
    "--quota-backend-bytes",
];

/// Programs that commands in runbooks begin with.
const PROGRAMS: &[&str] = &["etcdctl", "openssl"];

const SECTIONS: &[&str] = &["Evidence to collect", "Reading it", "Actions and their risks", "What not to do"];

/// The names of all fields in a schema.
fn fields(schema: &Value, names: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            if let Some(properties) = map.get("properties").and_then(Value::as_object) {
                names.extend(properties.keys().cloned());
            }
            if let Some(words) = map.get("enum").and_then(Value::as_array) {
                names.extend(words.iter().filter_map(|w| w.as_str().map(str::to_owned)));
            }
            map.values().for_each(|v| fields(v, names));
        }
        Value::Array(list) => list.iter().for_each(|v| fields(v, names)),
        _ => {}
    }
}

fn source(path: &str) -> String {
    std::fs::read_to_string(format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Everything that a runbook may name in backticks.
fn known() -> BTreeSet<String> {
    let mut known: BTreeSet<String> = FOREIGN.iter().map(|s| (*s).to_owned()).collect();
    for tool in Tool::ALL.iter().map(|t| t.spec()) {
        known.insert(tool.name.to_owned());
        fields(&spec::schema_of(tool.output), &mut known);
        for param in tool.params {
            if let (true, spec::Kind::OneOf(names)) = (param.name == "metric", param.kind) {
                known.extend(names.iter().map(|n| (*n).to_owned()));
            }
        }
    }
    fields(&spec::schema_of(spec::META), &mut known);
    known.extend(SETTINGS.iter().map(|s| s.key.to_owned()));
    known.extend(TOPIC_CONFIGS.iter().map(|c| c.name.to_owned()));
    known.extend(Code::ALL.iter().map(|c| c.as_str().to_owned()));
    // The tables of the broker, which this crate does not depend on: as text.
    let settings = source("broker/src/config/table.rs");
    known.extend(settings.split('"').skip(1).step_by(2).filter(|s| is_word(s)).map(str::to_owned));
    let mut metrics = ["broker/src/metrics.rs", "storage/src/metrics.rs"].map(source).concat();
    for file in std::fs::read_dir(format!("{}/../broker/src/metrics", env!("CARGO_MANIFEST_DIR"))).unwrap() {
        metrics += &std::fs::read_to_string(file.unwrap().path()).unwrap();
    }
    for name in metrics.split('"').skip(1).step_by(2).filter(|s| is_word(s)) {
        known.insert(format!("strandline_{}", name.trim_start_matches("strandline_")));
    }
    // The broker's commands and their flags.
    let commands = source("broker/src/process.rs");
    for word in commands.split('"').skip(1).step_by(2) {
        known.extend([word.to_owned(), format!("strandline {word}")]);
    }
    // Findings of an audit, and facts of a change.
    for path in ["mcp/src/tools/topics.rs", "mcp/src/source/changes.rs", "mcp/src/access/tokens.rs"] {
        let text = source(path);
        known.extend(text.split('"').skip(1).step_by(2).filter(|s| is_word(s)).map(str::to_owned));
    }
    known.extend(["expires", "exp"].map(str::to_owned));
    known
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// What stands in backticks outside of blocks of commands, and the commands.
fn parts(runbook: &Runbook) -> (Vec<String>, Vec<String>) {
    let (mut names, mut commands) = (Vec::new(), Vec::new());
    for (index, block) in runbook.text.split("```").enumerate() {
        if index % 2 == 1 {
            commands.extend(block.lines().skip(1).filter(|l| !l.trim().is_empty()).map(str::to_owned));
        } else {
            names.extend(block.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    (names, commands)
}

#[test]
fn every_runbook_names_only_what_exists_and_has_every_section() {
    let (known, runbooks) = (known(), Runbooks::open(None).unwrap());
    let mut wrong = Vec::new();
    for runbook in runbooks.all().iter() {
        let (names, commands) = parts(runbook);
        assert!(names.len() > 5, "{} names nothing", runbook.id);
        wrong
            .extend(names.into_iter().filter(|n| !known.contains(n)).map(|n| format!("{}: {n}", runbook.id)));
        for command in commands {
            let program = command.split_whitespace().next().unwrap();
            assert!(PROGRAMS.contains(&program), "{}: {command}", runbook.id);
        }
        assert_eq!(runbook.sections(), SECTIONS, "{}", runbook.id);
        assert!(
            runbook.text.contains("Afterwards:"),
            "{} does not say how to see that it is over",
            runbook.id
        );
        // "runbook x" and "runbooks x and y" lead somewhere.
        for behind in runbook.text.split("(runbook ").skip(1) {
            let id = behind.split(')').next().unwrap();
            assert!(runbooks.find(id).is_some(), "{} leads to {id}", runbook.id);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_cause_has_a_runbook_and_every_runbook_is_for_causes_that_there_are() {
    let runbooks = Runbooks::open(None).unwrap();
    for code in Code::ALL {
        assert!(runbooks.for_cause(code.as_str()).is_some(), "{} has no runbook", code.as_str());
    }
    for runbook in runbooks.all().iter() {
        assert!(!runbook.causes.is_empty(), "{}", runbook.id);
        for cause in &runbook.causes {
            assert!(Code::ALL.iter().any(|c| c.as_str() == cause), "{}: {cause}", runbook.id);
        }
    }
}
