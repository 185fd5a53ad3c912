//! The file of static SAs and policies, and of who serves them: read, checked whole, every problem named with its line.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use culvert_proto::policy::{Mode, short};
use culvert_proto::sa::{Action, Direction, PolicySpec, SaId, SaSpec, Selector, Spi};
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use zeroize::Zeroizing;

use crate::entry::{self, SaEntry};
pub use crate::fallback_entry::Fallback;
use crate::fallback_entry::{FallbackEntry, PeerEntry, peer_as_written};
use crate::keys;
use crate::policy_entry::{Policy, PolicyEntry, WrittenAction, policy_as_written};

/// Where the file is, unless told otherwise.
pub const PATH: &str = "/etc/culvert/keymgr.toml";

/// What the file says, checked. The SAs have no state yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// SAs.
    pub sas: Vec<SaSpec>,
    /// Policies.
    pub policies: Vec<PolicySpec>,
    /// Who may serve those of the policies that say so themselves.
    pub modes: BTreeMap<Selector, Mode>,
    /// Who may serve the others, and strongSwan's.
    pub fallback: Fallback,
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
pub(crate) fn parse(text: &str, path: &Path) -> Result<(Config, bool), Problems> {
    let problems = |list| Problems {
        path: path.to_owned(),
        list,
    };
    let mut check = Check {
        lines: Lines::of(text),
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
    let mut fallback = Fallback::default();
    for (name, value) in document.into_inner() {
        let line = check.lines.line(name.span().start);
        let span = value.span();
        match (&**name.get_ref(), value.into_inner()) {
            ("fallback", DeValue::Table(table)) => {
                fallback = check.fallback(line, Spanned::new(span, table));
            }
            ("fallback", _) => {
                let text = "write [fallback], in single brackets: there is one";
                check.add(line, [text.to_owned()]);
            }
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
                        "\"{name}\" is not known; there are [[sa]], [[policy]] and [fallback]"
                    )],
                );
            }
        }
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut inline_keys = false;
    let mut sas = Vec::new();
    for value in sa_values {
        let line = check.lines.line(value.span().start);
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
        let line = check.lines.line(value.span().start);
        let name = policy_as_written(value.get_ref());
        let checked = check
            .read::<PolicyEntry>(&name, value)
            .and_then(|entry| entry.check().map_err(|texts| check.add(line, texts)).ok());
        policies.extend(checked.map(|policy| (line, policy)));
    }
    check.sas_together(&sas);
    let modes = policies.iter().filter_map(|(_, policy): &(usize, Policy)| {
        let mode = policy.mode?;
        Some((policy.selector.clone(), mode))
    });
    let modes = modes.collect();
    let policies = check.policies_together(policies, &sas);
    if check.list.is_empty() {
        let sas = sas.into_iter().map(|(_, spec)| spec).collect();
        let config = Config {
            sas,
            policies,
            modes,
            fallback,
        };
        Ok((config, inline_keys))
    } else {
        check.list.sort_by_key(|problem| problem.line);
        Err(problems(check.list))
    }
}

/// Where the lines of a text end.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        let bytes = text.bytes().enumerate();
        Self(
            bytes
                .filter(|(_, byte)| *byte == b'\n')
                .map(|(at, _)| at)
                .collect(),
        )
    }

    /// The line of the byte at `at`, from 1.
    fn line(&self, at: usize) -> usize {
        self.0.partition_point(|end| *end < at) + 1
    }
}

/// What is wrong so far, and the checks that look at more than one entry.
struct Check {
    lines: Lines,
    list: Vec<Problem>,
    /// SPIs of SAs that have problems of their own: nothing more is said where they are named.
    broken: HashSet<u32>,
}

impl Check {
    /// An entry by its form. Each is read by itself, so that one that is wrong does not hide the others'
    /// problems.
    fn read<T: DeserializeOwned>(&mut self, name: &str, value: Spanned<DeValue<'_>>) -> Option<T> {
        T::deserialize(ValueDeserializer::from(value))
            .map_err(|error| self.add_error(name, &error))
            .ok()
    }

    fn add_error(&mut self, entry: &str, error: &toml::de::Error) {
        let line = error.span().map_or(0, |span| self.lines.line(span.start));
        let separator = if entry.is_empty() { "" } else { ": " };
        self.add(line, [format!("{entry}{separator}{}", error.message())]);
    }

    fn add(&mut self, line: usize, texts: impl IntoIterator<Item = String>) {
        self.list
            .extend(texts.into_iter().map(|text| Problem { line, text }));
    }

    /// `[fallback]`, whose header is in `line`. Its peers are read one by one.
    fn fallback(&mut self, line: usize, table: Spanned<DeTable<'_>>) -> Fallback {
        let (span, mut table) = (table.span(), table.into_inner());
        let peers = match table.remove("peer").map(Spanned::into_inner) {
            None => Vec::new(),
            Some(DeValue::Array(peers)) => peers.into_iter().collect(),
            Some(_) => {
                let text = "write [[fallback.peer]], in double brackets: there may be several";
                self.add(line, [text.to_owned()]);
                Vec::new()
            }
        };
        let mut fallback = self
            .read::<FallbackEntry>("fallback", Spanned::new(span, DeValue::Table(table)))
            .and_then(|entry| entry.check().map_err(|texts| self.add(line, texts)).ok())
            .unwrap_or_default();
        let mut lines = HashMap::new();
        for value in peers {
            let line = self.lines.line(value.span().start);
            let name = peer_as_written(value.get_ref());
            let checked = self
                .read::<PeerEntry>(&name, value)
                .and_then(|entry| entry.check().map_err(|texts| self.add(line, texts)).ok());
            let Some((remote, mode)) = checked else {
                continue;
            };
            if let Some(first) = lines.insert(remote, line) {
                let text = format!("{name}: the same remote as the peer in line {first}");
                self.add(line, [text]);
            }
            fallback.peers.push((remote, mode));
        }
        fallback
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

    /// The policies, in their order, with the SAs that they name.
    fn policies_together(
        &mut self,
        policies: Vec<(usize, Policy)>,
        sas: &[(usize, SaSpec)],
    ) -> Vec<PolicySpec> {
        let mut selectors = HashMap::new();
        let mut specs = Vec::new();
        let mut by_spi: HashMap<Spi, Vec<&(usize, SaSpec)>> = HashMap::new();
        for sa in sas {
            by_spi.entry(sa.1.id.spi).or_default().push(sa);
        }
        for (order, (line, policy)) in (0..).zip(policies) {
            let selector = &policy.selector;
            if let Some(first) = selectors.insert(selector.clone(), line) {
                let text =
                    format!("policy {selector}: the same selector as the policy in line {first}");
                self.add(line, [text]);
            }
            let outbound = policy
                .out
                .and_then(|spi| self.named(line, selector, spi, Direction::Out, &by_spi));
            let inbound = policy
                .r#in
                .iter()
                .filter_map(|&spi| self.named(line, selector, spi, Direction::In, &by_spi))
                .collect();
            specs.push(PolicySpec {
                action: match policy.action {
                    WrittenAction::Protect => Action::Protect { outbound, inbound },
                    WrittenAction::Bypass => Action::Bypass,
                    WrittenAction::Discard => Action::Discard,
                },
                selector: policy.selector,
                order,
            });
        }
        specs
    }

    /// The SA that a policy names by its SPI: one of that direction, between its ends.
    fn named(
        &mut self,
        line: usize,
        selector: &Selector,
        spi: Spi,
        direction: Direction,
        by_spi: &HashMap<Spi, Vec<&(usize, SaSpec)>>,
    ) -> Option<SaId> {
        let sas = by_spi.get(&spi).map_or(&[][..], Vec::as_slice);
        let fits = |sa: &SaSpec| {
            let (local, remote) = match direction {
                Direction::Out => (sa.source, sa.id.destination),
                Direction::In => (sa.id.destination, sa.source),
            };
            sa.id.direction == direction
                && selector.local.contains(&local)
                && selector.remote.contains(&remote)
        };
        let mut fitting = sas.iter().filter(|(_, sa)| fits(sa));
        let text = match (fitting.next(), fitting.next()) {
            (Some((_, sa)), None) => return Some(sa.id),
            (Some((one, _)), Some((other, _))) => format!(
                "policy {selector}: SA {spi} {direction} may be the one in line {one} or the one in line {other}; \
                 give them different SPIs"
            ),
            (None, _) if self.broken.contains(&spi.get()) => return None,
            (None, _) => {
                let (from, to) = match direction {
                    Direction::Out => (&selector.local, &selector.remote),
                    Direction::In => (&selector.remote, &selector.local),
                };
                match sas.first() {
                    Some((other, sa)) => format!(
                        "policy {selector}: needs SA {spi} {direction} from {} to {}, but the one in line {other} \
                         is {} from {} to {}",
                        short(from),
                        short(to),
                        sa.id.direction,
                        sa.source,
                        sa.id.destination
                    ),
                    None => format!("policy {selector}: there is no SA {spi}"),
                }
            }
        };
        self.add(line, [text]);
        None
    }
}

#[cfg(test)]
mod tests;
