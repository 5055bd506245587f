//! `strandline-fuzz-mutate TARGET SECONDS [SEED]`: tries changed inputs of the corpus with any
//! compiler, blindly. libFuzzer (`make fuzz`) sees which changes lead anywhere; this one finds what
//! lies near.
//!
//! An input that panics is left in `found-<target>` of the working folder, and the program ends
//! with 1.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{fs, panic};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strandline_fuzz::targets;

/// An input that is changed grows to at most this.
const MAX_BYTES: usize = 256 * 1024;
/// What decoders like least.
const NUMBERS: [i64; 9] = [0, 1, -1, 127, 128, 32_767, 2_147_483_647, -2_147_483_648, i64::MAX];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let name = args.first().map_or("", String::as_str);
    let seconds = args.get(1).and_then(|s| s.parse().ok());
    let (Some(target), Some(seconds)) = (targets().into_iter().find(|t| t.name == name), seconds) else {
        eprintln!("usage: strandline-fuzz-mutate TARGET SECONDS [SEED]");
        return ExitCode::from(2);
    };
    let seed = args.get(2).and_then(|s| s.parse().ok()).unwrap_or(1);
    let mut rng = StdRng::seed_from_u64(seed);
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let files = fs::read_dir(folder).expect("every target has a corpus").flatten();
    let mut inputs: Vec<Vec<u8>> = files.filter_map(|e| fs::read(e.path()).ok()).collect();
    inputs.sort();
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut tried = 0_u64;
    while Instant::now() < until {
        let input = changed(&inputs, &mut rng);
        tried += 1;
        if panic::catch_unwind(|| (target.run)(&input)).is_err() {
            fs::write(format!("found-{name}"), &input).expect("a file can be written");
            println!("{name}: input {tried} of seed {seed} panics; it is in found-{name}");
            return ExitCode::FAILURE;
        }
    }
    println!("{name}: {tried} inputs, nothing found");
    ExitCode::SUCCESS
}

/// One of the inputs with a few changes, or the beginning of one with the end of another.
fn changed(inputs: &[Vec<u8>], rng: &mut StdRng) -> Vec<u8> {
    let mut input = inputs[rng.random_range(0..inputs.len())].clone();
    for _ in 0..rng.random_range(1..6) {
        if input.is_empty() {
            input.push(rng.random());
        }
        let at = rng.random_range(0..input.len());
        match rng.random_range(0..8) {
            0 => input[at] ^= 1 << rng.random_range(0..8),
            1 => input[at] = rng.random(),
            2 => {
                let number = NUMBERS[rng.random_range(0..NUMBERS.len())].to_be_bytes();
                let width = [1, 2, 4, 8][rng.random_range(0..4)];
                let end = input.len().min(at + width);
                input[at..end].copy_from_slice(&number[8 - width..][..end - at]);
            }
            3 => {
                let end = input.len().min(at + rng.random_range(1..64));
                input.drain(at..end);
            }
            4 => {
                let end = input.len().min(at + rng.random_range(1..64));
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            5 => input.truncate(at),
            6 => {
                let other = &inputs[rng.random_range(0..inputs.len())];
                let from = rng.random_range(0..=other.len());
                input.truncate(at);
                input.extend(&other[from..]);
            }
            _ => {
                let noise: Vec<u8> = (0..rng.random_range(1..16)).map(|_| rng.random()).collect();
                input.splice(at..at, noise);
            }
        }
    }
    input.truncate(MAX_BYTES);
    input
}
