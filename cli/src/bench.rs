//! `culvert bench`: the benchmark suite, which is a program of its own beside this one.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Result, anyhow, bail};

/// The program.
const PROGRAM: &str = "culvert-bench";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure; "culvert bench --help" says what there is
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARG"
    )]
    arguments: Vec<OsString>,
}

/// Becomes it.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    let program = std::env::current_exe()?.with_file_name(PROGRAM);
    if !program.exists() {
        bail!(
            "there is no {}: ./dev build and ./dev install bring it",
            program.display()
        );
    }
    let error = Command::new(&program).args(&arguments.arguments).exec();
    Err(anyhow!(error).context(program.display().to_string()))
}
