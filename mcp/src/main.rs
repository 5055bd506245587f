//! `strandline-mcp`: parse → open → run → drain.

use std::process::ExitCode;

fn main() -> ExitCode {
    strandline_mcp::process::main()
}
