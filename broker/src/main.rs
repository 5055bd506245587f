//! `strandline`: parse → open → run → drain.

use std::process::ExitCode;

fn main() -> ExitCode {
    strandline_broker::process::main()
}
