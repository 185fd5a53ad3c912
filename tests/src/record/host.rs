//! What this machine says of itself.

use std::num::NonZero;
use std::process::Command;

use super::Host;
use crate::netns::run;

/// Features that ciphers use, as x86 and arm call them.
const FEATURES: [&str; 9] = [
    "aes",
    "vaes",
    "pclmulqdq",
    "vpclmulqdq",
    "avx2",
    "avx512f",
    "sha_ni",
    "asimd",
    "pmull",
];

impl Host {
    /// This machine. What it does not say is empty.
    #[must_use]
    pub fn this() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cores = u32::try_from(cores).unwrap_or(u32::MAX);
        Self::described(&cpus, cores, &said(Command::new("uname").arg("-sr")))
    }

    fn described(cpus: &str, cores: u32, kernel: &str) -> Self {
        let of = |names: &[&str]| {
            let mut lines = cpus.lines().filter_map(|line| line.split_once(':'));
            let value =
                lines.find_map(|(name, value)| names.contains(&name.trim()).then_some(value));
            value.map(str::trim)
        };
        // A CPU of arm has no name, only numbers.
        let cpu = of(&["model name", "Model"])
            .unwrap_or(std::env::consts::ARCH)
            .to_owned();
        let flags: Vec<&str> = of(&["flags", "Features"])
            .unwrap_or_default()
            .split(' ')
            .collect();
        let bogomips: Option<f64> = of(&["bogomips"]).and_then(|text| text.parse().ok());
        Self {
            class: class(&cpu, cores),
            features: FEATURES
                .into_iter()
                .filter(|name| flags.contains(name))
                .map(str::to_owned)
                .collect(),
            cores,
            // Linux takes the x86 time stamp counter's frequency for its delay loop, which is twice that in BogoMIPS.
            tsc_ghz: bogomips
                .filter(|_| flags.contains(&"constant_tsc"))
                .map(|mips| mips / 2000.0),
            kernel: kernel.to_owned(),
            rustc: env!("CULVERT_RUSTC").to_owned(),
            cpu,
        }
    }
}

/// `amd-epyc-9575f-2` of `AMD EPYC 9575F 64-Core Processor` with two of its cores. An emulated CPU is as fast as its emulator:
/// `guest`.
fn class(cpu: &str, cores: u32) -> String {
    if cpu.starts_with("QEMU TCG") {
        return "guest".to_owned();
    }
    let (model, _frequency) = cpu.split_once('@').unwrap_or((cpu, ""));
    let model = model
        .to_lowercase()
        .replace("(r)", " ")
        .replace("(tm)", " ");
    let words = model
        .split(|character: char| !character.is_ascii_alphanumeric() && character != '-')
        .filter(|word| {
            !word.is_empty() && !["cpu", "processor"].contains(word) && !word.ends_with("-core")
        });
    let mut class: String = words.flat_map(|word| [word, "-"]).collect();
    class += &cores.to_string();
    class
}

/// Where the source that this was built from is still there: the commit that it is at now. Elsewhere the version.
pub(super) fn commit() -> String {
    let commit = said(
        Command::new("git")
            .args(["describe", "--always", "--dirty", "--exclude=*"])
            .current_dir(env!("CARGO_MANIFEST_DIR")),
    );
    match commit.is_empty() {
        true => env!("CARGO_PKG_VERSION").to_owned(),
        false => commit,
    }
}

/// The day, as in 2026-11-28.
pub(super) fn today() -> String {
    said(Command::new("date").arg("+%F"))
}

/// What a command says, or nothing.
fn said(command: &mut Command) -> String {
    run(command).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        assert_eq!(class("AMD EPYC", 2), "amd-epyc-2");
        assert_eq!(
            class("AMD EPYC 9575F 64-Core Processor", 4),
            "amd-epyc-9575f-4"
        );
        assert_eq!(
            class("Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", 48),
            "intel-xeon-platinum-8488c-48"
        );
        assert_eq!(class("QEMU TCG CPU version 2.5+", 2), "guest");
    }

    #[test]
    fn what_a_cpu_says() {
        let x86 = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu constant_tsc aes vaes avx2\nbogomips\t: 5192.24\n";
        let host = Host::described(x86, 2, "Linux 6.18");
        assert_eq!(host.cpu, "AMD EPYC");
        assert_eq!(host.features, ["aes", "vaes", "avx2"]);
        assert_eq!(host.tsc_ghz, Some(2.59612));

        let arm = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd aes pmull\n";
        let host = Host::described(arm, 64, "Linux 6.18");
        assert_eq!(host.features, ["aes", "asimd", "pmull"]);
        assert_eq!(host.tsc_ghz, None);
    }
}
