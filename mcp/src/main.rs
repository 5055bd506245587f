//! `strandline-mcp`: parse → open → run → drain.

use std::process::ExitCode;

/// A read of a large cluster is tens of thousands of small values, made and dropped with each call:
/// a third of the observer's processor time went into the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    strandline_mcp::process::main()
}
