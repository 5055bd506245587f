//! Every input that fuzzing begins with, has found worth keeping, or has found something with, is
//! tried again.

use std::fs;
use std::path::{Path, PathBuf};

use strandline_fuzz::targets;

/// The inputs of a target that are kept.
fn kept(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("every target has a corpus").flatten().map(|e| e.path()).collect();
    files.sort();
    files
}

fn assert_nothing_is_found(target: &str) {
    let run = targets().into_iter().find(|t| t.name == target).expect("a target of this name").run;
    let files = kept(target);
    assert!(!files.is_empty(), "{target} has no corpus");
    for file in files {
        // Said when the test fails.
        println!("{}", file.display());
        run(&fs::read(&file).expect("an input can be read"));
    }
}

macro_rules! corpus {
    ($($target:ident),*) => {
        $(#[test]
        fn $target() {
            assert_nothing_is_found(stringify!($target));
        })*

        #[test]
        fn every_target_is_tried() {
            let names: Vec<&str> = targets().iter().map(|t| t.name).collect();
            assert_eq!(names, [$(stringify!($target)),*]);
        }
    };
}

corpus!(requests, batches, compaction, objects, log, snapshots, metadata, configs, observer);
