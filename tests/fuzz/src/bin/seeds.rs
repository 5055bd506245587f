//! `strandline-fuzz-seeds FOLDER`: writes what fuzzing begins with, a folder for each target.

use std::path::PathBuf;
use std::{fs, process};

fn main() {
    let Some(folder) = std::env::args().nth(1).map(PathBuf::from) else {
        eprintln!("usage: strandline-fuzz-seeds FOLDER");
        process::exit(2);
    };
    for ((target, name), data) in strandline_fuzz::seeds::all() {
        let folder = folder.join(target);
        fs::create_dir_all(&folder).expect("a folder can be made");
        fs::write(folder.join(name), data).expect("a file can be written");
    }
}
