//! The file of static SAs and policies: read, checked whole, every problem named with its line.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use culvert_proto::sa::{Direction, PolicySpec, SaSpec, Spi};
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use zeroize::Zeroizing;

use crate::entry::{self, PolicyEntry, SaEntry};
use crate::keys;

/// Where the file is, unless told otherwise.
pub const PATH: &str = "/etc/culvert/keymgr.toml";

/// What the file says, checked. The SAs have no state yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// SAs.
    pub sas: Vec<SaSpec>,
    /// Policies.
    pub policies: Vec<PolicySpec>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1; 0 for the file itself.
    pub line: usize,
    /// Which entry, what is wrong, what is allowed.
    pub text: String,
}

/// Everything that is wrong with a file. Nothing of it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, in the order of the file.
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.list.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.path.display())?;
            if problem.line > 0 {
                write!(f, ":{}", problem.line)?;
            }
            write!(f, ": {}", problem.text)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Reads and checks `path`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let whole = |text: String| Problems {
        path: path.to_owned(),
        list: vec![Problem { line: 0, text }],
    };
    let text =
        std::fs::read_to_string(path).map_err(|error| whole(format!("cannot be read: {error}")))?;
    let text = Zeroizing::new(text);
    let (config, inline_keys) = parse(&text, path)?;
    if inline_keys {
        keys::check_private(path).map_err(|problem| {
            whole(format!(
                "it has keys in it, so it must be private: {problem}"
            ))
        })?;
    }
    Ok(config)
}

/// Checks `text`, which came from `path`; also says whether it has keys in it. Lines of entries are those of
/// their headers.
fn parse(text: &str, path: &Path) -> Result<(Config, bool), Problems> {
    let problems = |list| Problems {
        path: path.to_owned(),
        list,
    };
    let mut check = Check {
        text,
        list: Vec::new(),
        broken: HashSet::new(),
    };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        check.add_error("", error);
    }
    if !errors.is_empty() {
        return Err(problems(check.list));
    }
    let (mut sa_values, mut policy_values) = (Vec::new(), Vec::new());
    for (name, value) in document.into_inner() {
        let line = line_of(text, name.span().start);
        match (&**name.get_ref(), value.into_inner()) {
            ("sa", DeValue::Array(values)) => sa_values.extend(values),
            ("policy", DeValue::Array(values)) => policy_values.extend(values),
            (name @ ("sa" | "policy"), _) => {
                check.add(
                    line,
                    [format!(
                        "write [[{name}]], in double brackets: there may be several"
                    )],
                );
            }
            (name, _) => {
                check.add(
                    line,
                    [format!(
                        "\"{name}\" is not known; there are [[sa]] and [[policy]]"
                    )],
                );
            }
        }
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut inline_keys = false;
    let mut sas = Vec::new();
    for value in sa_values {
        let line = line_of(text, value.span().start);
        let (name, spi) = entry::sa_as_written(value.get_ref());
        let checked = check.read::<SaEntry>(&name, value).and_then(|entry| {
            inline_keys |= entry.has_inline_key();
            entry
                .check(folder)
                .map_err(|texts| check.add(line, texts))
                .ok()
        });
        match checked {
            Some(spec) => sas.push((line, spec)),
            None => check.broken.extend(spi),
        }
    }
    let mut policies = Vec::new();
    for value in policy_values {
        let line = line_of(text, value.span().start);
        let name = entry::policy_as_written(value.get_ref());
        let checked = check
            .read::<PolicyEntry>(&name, value)
            .and_then(|entry| entry.check().map_err(|texts| check.add(line, texts)).ok());
        policies.extend(checked.map(|spec| (line, spec)));
    }
    check.sas_together(&sas);
    check.policies_together(&policies, &sas);
    if check.list.is_empty() {
        let sas = sas.into_iter().map(|(_, spec)| spec).collect();
        let policies = policies.into_iter().map(|(_, spec)| spec).collect();
        Ok((Config { sas, policies }, inline_keys))
    } else {
        check.list.sort_by_key(|problem| problem.line);
        Err(problems(check.list))
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// What is wrong so far, and the checks that look at more than one entry.
struct Check<'a> {
    text: &'a str,
    list: Vec<Problem>,
    /// SPIs of SAs that have problems of their own: nothing more is said where they are named.
    broken: HashSet<u32>,
}

impl Check<'_> {
    /// An entry by its form. Each is read by itself, so that one that is wrong does not hide the others'
    /// problems.
    fn read<T: DeserializeOwned>(&mut self, name: &str, value: Spanned<DeValue<'_>>) -> Option<T> {
        T::deserialize(ValueDeserializer::from(value))
            .map_err(|error| self.add_error(name, &error))
            .ok()
    }

    fn add_error(&mut self, entry: &str, error: &toml::de::Error) {
        let line = error
            .span()
            .map_or(0, |span| line_of(self.text, span.start));
        let separator = if entry.is_empty() { "" } else { ": " };
        self.add(line, [format!("{entry}{separator}{}", error.message())]);
    }

    fn add(&mut self, line: usize, texts: impl IntoIterator<Item = String>) {
        self.list
            .extend(texts.into_iter().map(|text| Problem { line, text }));
    }

    fn sas_together(&mut self, sas: &[(usize, SaSpec)]) {
        let mut ids = HashMap::new();
        let mut keys: HashMap<&[u8], (usize, &SaSpec)> = HashMap::new();
        for (line, sa) in sas {
            let name = entry::sa_name(sa);
            if let Some(first) = ids.insert((sa.id.spi, sa.id.destination), *line) {
                let text = format!(
                    "{name}: this SPI and destination are used by the SA in line {first} already; give \
                     every SA to {} its own SPI",
                    sa.id.destination
                );
                self.add(*line, [text]);
            }
            // The SPI is not part of the nonce: two SAs under one key use the same nonces.
            if let Some((first, _)) = keys.insert(sa.keymat.bytes(), (*line, sa)) {
                let text = format!(
                    "{name}: the same key as the SA in line {first}; under one key no nonce may come \
                     twice, so give every SA a key of its own, also in the two directions"
                );
                self.add(*line, [text]);
            }
        }
    }

    fn policies_together(&mut self, policies: &[(usize, PolicySpec)], sas: &[(usize, SaSpec)]) {
        let mut selectors = HashMap::new();
        let mut owners: HashSet<(Spi, IpAddr)> = HashSet::new();
        for (line, policy) in policies {
            let name = entry::policy_name(policy);
            if let Some(first) = selectors.insert(policy.id(), *line) {
                let text = format!("{name}: the same selector as the policy in line {first}");
                self.add(*line, [text]);
            }
            if let Some(spi) = policy.outbound {
                let wanted = (Direction::Out, policy.local, policy.remote);
                self.names(*line, &name, spi, wanted, sas);
            }
            for &spi in &policy.inbound {
                let wanted = (Direction::In, policy.remote, policy.local);
                self.names(*line, &name, spi, wanted, sas);
                if !owners.insert((spi, policy.local)) {
                    let text = format!("{name}: SA {spi} in is named by another policy, or twice");
                    self.add(*line, [text]);
                }
            }
        }
    }

    /// A policy names an SA: it must be there, for this direction and between these addresses.
    fn names(
        &mut self,
        line: usize,
        policy: &str,
        spi: Spi,
        (direction, source, destination): (Direction, IpAddr, IpAddr),
        sas: &[(usize, SaSpec)],
    ) {
        let fits = |sa: &SaSpec| {
            sa.id.spi == spi
                && sa.id.direction == direction
                && sa.source == source
                && sa.id.destination == destination
        };
        if sas.iter().any(|(_, sa)| fits(sa)) || self.broken.contains(&spi.get()) {
            return;
        }
        let text = match sas.iter().find(|(_, sa)| sa.id.spi == spi) {
            Some((other, sa)) => format!(
                "{policy}: needs SA {spi} {direction} from {source} to {destination}, but the one in \
                 line {other} is {} from {} to {}",
                sa.id.direction, sa.source, sa.id.destination
            ),
            None => format!("{policy}: there is no SA {spi}"),
        };
        self.add(line, [text]);
    }
}

#[cfg(test)]
mod tests;
