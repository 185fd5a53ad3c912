//! What people look at: tables, charts and a page, made from the records alone.
//!
//! [`input`] reads the records and refuses those that cannot be; [`sections`] say what is shown of them, as a
//! [`document`]; [`markdown`] and [`html`] write that down, [`chart`] its pictures.

mod chart;
mod document;
mod html;
mod input;
mod markdown;
mod numbers;
mod plausible;
mod sections;
mod svg;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use culvert_tests::record::Record;

use self::input::Input;

/// What makes it again.
const COMMAND: &str = "./dev bench report";

/// Everything that is made, by name. The same records give the same bytes.
type Files = BTreeMap<String, String>;

/// Reads every record in `folder` and writes there the report made of them: `README.md`, its charts, `report.html`, and the
/// `schema.json` of the records. Charts of earlier reports are removed. Returns the files that it wrote.
///
/// # Errors
/// A record cannot be read, is not as the schema has it or says what cannot be; nothing is changed then. Or a file cannot be
/// written.
pub fn write(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = made(folder)?;
    for name in left_over(folder, &files)? {
        std::fs::remove_file(folder.join(&name)).with_context(|| name)?;
    }
    let write = |(name, text): (&String, &String)| {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    };
    files.iter().map(write).collect()
}

/// Whether what is in `folder` is what its records give.
///
/// # Errors
/// It is not: names the files that differ. Or as [`write`].
pub fn check(folder: &Path) -> Result<()> {
    let files = made(folder)?;
    let differs = |(name, text): &(&String, &String)| {
        let there = std::fs::read_to_string(folder.join(name)).ok();
        there.as_ref() != Some(text)
    };
    let mut wrong: Vec<String> = files
        .iter()
        .filter(differs)
        .map(|(name, _)| name.clone())
        .collect();
    wrong.extend(left_over(folder, &files)?);
    if wrong.is_empty() {
        return Ok(());
    }
    bail!(
        "{} is not what the records give: {}; run `{COMMAND}`",
        folder.display(),
        wrong.join(", ")
    )
}

/// The schema of the records, as JSON.
///
/// # Errors
/// None that is known.
pub fn schema() -> Result<String> {
    Ok(serde_json::to_string_pretty(&schemars::schema_for!(Record))? + "\n")
}

fn made(folder: &Path) -> Result<Files> {
    let input = Input::read(folder)?;
    let document = sections::document(&input);
    let mut files: Files = document
        .charts()
        .map(|chart| (chart.file.clone(), chart.file_text()))
        .collect();
    files.insert("README.md".to_owned(), markdown::of(&document));
    files.insert("report.html".to_owned(), html::of(&document));
    files.insert("schema.json".to_owned(), schema()?);
    Ok(files)
}

/// Charts that earlier records gave.
fn left_over(folder: &Path, files: &Files) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".svg") && !files.contains_key(&name) {
            let text = std::fs::read_to_string(entry.path()).with_context(|| name.clone())?;
            if text.contains(svg::MADE) {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}
