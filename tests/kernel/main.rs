//! The kernel's IPsec as the other implementation: Culvert in namespace a, `ip xfrm` in b, kernel Geneve in both.
//!
//! Runs in the guest of `tests/guest`, which it starts with itself in it: a kernel that is known, with everything
//! that is needed, and modules that are loaded nowhere else. With `CULVERT_GUEST` set, it runs where it is.

mod campaign;
mod cases;
mod fallback;
mod handover;
mod negotiated;
mod systemd;
mod wires;
mod xfrm;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use culvert_tests::hypervisor::{PARTS_VARIABLE, parts};
use culvert_tests::lab::missing;
use culvert_tests::negotiated as ike;
use culvert_tests::netns::prepare;
use culvert_tests::systemd::{VARIABLE, find};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::Signal;

type Test = Box<dyn FnOnce() -> Result<()> + Send>;
/// One that has no parameters.
type Plain = fn() -> Result<()>;

fn main() {
    let mut arguments = Arguments::from_args();
    // They share a lab, and for that a thread: what a thread has started for a lab ends with it.
    arguments.test_threads = Some(1);
    let inside = std::env::var_os("CULVERT_GUEST").is_some();
    let skip = if inside { missing() } else { guest_missing() };
    if !inside && skip.is_none() && !arguments.list {
        eprintln!("cannot start the guest: {}", enter_guest());
        std::process::exit(1);
    }
    let no_systemd = skip
        .clone()
        .or_else(|| find().err().and_then(|error| error.lacking()));
    let every = std::env::var_os("CULVERT_EVERY_CASE").is_some();
    let trials = cases::all().into_iter().map(|(name, rare, test)| {
        let left = (rare && !every).then(|| "`./dev test --lab` has it".to_owned());
        trial(name, skip.clone().or(left), test)
    });
    let no_charon = skip
        .clone()
        .or_else(|| parts().err().and_then(|error| error.lacking()))
        .or_else(ike::missing);
    let charon: [(&str, Plain); 2] = [
        (
            "what_culvert_lacks_is_the_kernels",
            negotiated::what_culvert_lacks_is_the_kernels,
        ),
        ("rekeyed_in_the_kernel", negotiated::rekeyed_in_the_kernel),
    ];
    let charon =
        charon.map(|(name, test)| trial(name.to_owned(), no_charon.clone(), Box::new(test)));
    let (name, test) = systemd::TEST;
    let last = trial(name.to_owned(), no_systemd, Box::new(test));
    let conclusion = libtest_mimic::run(&arguments, trials.chain(charon).chain([last]).collect());
    cases::end();
    conclusion.exit();
}

fn trial(name: String, skip: Option<String>, test: Test) -> Trial {
    match skip {
        None => Trial::test(name, || {
            test().map_err(|error| {
                // At once, as the list at the end does not come if a later one hangs.
                eprintln!("{error:#}");
                Failed::from(format!("{error:#}"))
            })
        }),
        Some(why) => {
            Trial::test(format!("{name}: skipped: {why}"), || Ok(())).with_ignored_flag(true)
        }
    }
}

fn script() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "guest", "run"]
        .iter()
        .collect()
}

/// Why there can be no guest, if so. Fetches its kernel. A script that is wrong is seen when the guest is entered.
fn guest_missing() -> Option<String> {
    prepare(&script(), &["--prepare"]).err()?.lacking()
}

/// Becomes the script that runs this program in the guest; comes back only if that fails.
fn enter_guest() -> std::io::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error,
    };
    // The guest ends when whoever runs the tests is killed.
    if let Err(error) = nix::sys::prctl::set_pdeathsig(Signal::SIGTERM) {
        return error.into();
    }
    let mut guest = Command::new(script());
    match find() {
        Ok(folder) => drop(guest.env(VARIABLE, folder)),
        Err(error) if error.lacking().is_some() => {}
        Err(error) => return std::io::Error::other(error),
    }
    match parts() {
        Ok(folder) => drop(guest.env(PARTS_VARIABLE, folder)),
        Err(error) if error.lacking().is_some() => {}
        Err(error) => return std::io::Error::other(error),
    }
    guest.arg(program).args(std::env::args_os().skip(1)).exec()
}

/// A cipher that Culvert knows and no case knows would be a cipher that is not tested.
fn every_cipher_has_its_cases() -> Result<()> {
    for cipher in culvert_proto::sa::Cipher::ALL {
        // Linux has no implicit IVs.
        if cipher.iv_length() == 0 {
            continue;
        }
        ensure!(
            cases::CIPHERS
                .iter()
                .any(|(name, ..)| *name == cipher.name()),
            "{cipher} is not in the table of the kernel's ciphers"
        );
    }
    Ok(())
}
