//! What the environment says of a campaign: `CULVERT_CAMPAIGN_SEED` repeats one, `CULVERT_CAMPAIGN_EVENTS` says how much
//! happens, `CULVERT_RECORD` names a file for what was measured, or is `-` for stdout, as a guest keeps no files.

use std::fs::File;
use std::io::Read;
use std::str::FromStr;

use anyhow::{Context, Result};

use super::record::Report;

/// Of one campaign.
#[derive(Debug)]
pub struct Settings {
    /// What stands for all that happens.
    pub seed: u64,
    /// How much happens.
    pub events: usize,
    record: Option<String>,
}

impl Settings {
    /// Unless told otherwise, a seed that nobody has chosen, and `usual` events, or `every` if every case is wanted. They are
    /// printed, as whatever happens is to be repeated by them.
    ///
    /// # Errors
    /// A variable makes no sense.
    pub fn read(name: &str, usual: usize, every: usize) -> Result<Self> {
        let this = Self {
            seed: match variable("CULVERT_CAMPAIGN_SEED")? {
                Some(seed) => seed,
                None => random()?,
            },
            events: Self::events(usual, every)?,
            record: variable("CULVERT_RECORD")?,
        };
        eprintln!("{name}: seed {}, {} events", this.seed, this.events);
        Ok(this)
    }

    /// How much happens.
    ///
    /// # Errors
    /// A variable makes no sense.
    pub fn events(usual: usize, every: usize) -> Result<usize> {
        let all = std::env::var_os("CULVERT_EVERY_CASE").is_some();
        let events = variable("CULVERT_CAMPAIGN_EVENTS")?;
        Ok(events.unwrap_or(if all { every } else { usual }))
    }

    /// Shows what was measured in one of the tests, `system` or `kernel`, and keeps it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, report: &Report, test: &str) -> Result<()> {
        eprintln!("{}", report.table());
        let Some(file) = &self.record else {
            return Ok(());
        };
        let record = serde_json::to_string_pretty(&report.record(test))?;
        match file.as_str() {
            "-" => println!("{record}"),
            file => std::fs::write(file, record + "\n")?,
        }
        Ok(())
    }
}

fn variable<T: FromStr>(name: &str) -> Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text = std::env::var(name).ok();
    text.map(|text| text.parse().with_context(|| format!("{name}={text}")))
        .transpose()
}

fn random() -> Result<u64> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes).into())
}
