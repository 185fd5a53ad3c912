//! Writes the page.

use std::fmt::Write;

use crate::tags::Tag;
use crate::{Requirement, Requirements};

/// `docs/rfc4303.md`.
pub(crate) fn write(requirements: &Requirements, tags: &[Tag]) -> String {
    let mut page = String::new();
    let _ = write!(page, "{}", head(requirements));
    for section in &requirements.section {
        let _ = write!(
            page,
            "\n## {} {}\n\n| | | in short | where | test |\n|---|---|---|---|---|\n",
            section.number, section.title
        );
        for requirement in &section.requirement {
            let Requirement {
                id, level, text, ..
            } = requirement;
            let [place, test] = cells(requirement, tags);
            let _ = writeln!(page, "| `{id}` | {level} | {text} | {place} | {test} |");
        }
    }
    page
}

fn head(requirements: &Requirements) -> String {
    let count = |which: fn(&Requirement) -> bool| requirements.all().filter(|r| which(r)).count();
    let all = count(|_| true);
    let not_met = count(|r| r.not_met.is_some());
    let not_applicable = count(|r| r.not_applicable.is_some());
    let untested = count(|r| r.untested.is_some());
    let met = all - not_met - not_applicable;
    format!(
        "\
<!-- Made by tests/rfc4303 from its requirements.toml and from comments at code and tests: do not edit. -->
# RFC 4303, sentence by sentence

What [RFC 4303](https://www.rfc-editor.org/rfc/rfc4303) (ESP) demands, where Culvert meets it, and which test shows that. Of
{all} sentences, **{met} are met** ({untested} of them without a test), **{not_met} are not**, and {not_applicable} do not bind Culvert;
each says why.

The levels are the RFC's words, small where the RFC writes them small; `says` marks what it says without any of them, and
section 5 makes binding. Sentences of a section that say the same share a row. What binds the authors of other RFCs
stands here if the RFC writes it large, a `MAY` if Culvert chose by it.

A comment `RFC 4303 [id]` at code or in a test puts that into this table;
`{}` makes the page anew. Without `CULVERT_BLESS`, the same
test fails if the page is stale, if an id is not known, or if a sentence has neither code and test nor a reason why not.
",
        crate::COMMAND
    )
}

/// The cells that say where it is met, and which test shows it.
fn cells(requirement: &Requirement, tags: &[Tag]) -> [String; 2] {
    if let Some(why) = &requirement.not_met {
        return [format!("**not met**: {why}"), String::new()];
    }
    if let Some(why) = &requirement.not_applicable {
        return [format!("not applicable: {why}"), String::new()];
    }
    let list = |is_test| {
        let places = tags
            .iter()
            .filter(|tag| tag.id == requirement.id && tag.is_test == is_test)
            .map(place);
        places.collect::<Vec<_>>().join("<br>")
    };
    let mut code = list(false);
    if let Some(note) = &requirement.note {
        let _ = write!(code, "<br>{note}");
    }
    let test = match &requirement.untested {
        Some(why) => format!("none: {why}"),
        None => list(true),
    };
    [code, test]
}

fn place(tag: &Tag) -> String {
    let short = short(&tag.file);
    let link = format!("[{short}](../{})", tag.file);
    match tag.item.as_str() {
        "" => link,
        item => format!("`{item}` in {link}"),
    }
}

/// The end of a path that is enough to know the file by: more for names that many files have.
fn short(file: &str) -> &str {
    let common = ["main.rs", "lib.rs", "tests.rs", "mod.rs"];
    let parts = if common
        .iter()
        .any(|name| file.ends_with(&format!("/{name}")))
    {
        2
    } else {
        1
    };
    let start = file.rmatch_indices('/').nth(parts - 1);
    start.map_or(file, |(at, _)| &file[at + 1..])
}
