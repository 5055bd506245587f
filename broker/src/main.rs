//! `strandline`: parse → open → run → drain.

use std::process::ExitCode;

/// The system's allocator kept 500 MiB of what hostile clients had made the broker take and give
/// back: what the budgets count must be what the process has.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    strandline_broker::process::main()
}
