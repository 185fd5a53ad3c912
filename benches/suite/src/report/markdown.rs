//! The report as Markdown, with its charts beside it.

use super::document::{Block, Document, Table};

pub(super) fn of(document: &Document) -> String {
    let mut text = format!("# {}\n\n", document.title);
    blocks(&mut text, &document.intro);
    text += "The same as one page, for a browser: [report.html](report.html).\n\n";
    let links: Vec<String> = document
        .sections
        .iter()
        .map(|section| format!("[{}](#{})", section.title, section.anchor()))
        .collect();
    if !links.is_empty() {
        text += &format!("{}\n\n", links.join(" · "));
    }
    for section in &document.sections {
        text += &format!("## {}\n\n", section.title);
        blocks(&mut text, &section.blocks);
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

fn blocks(text: &mut String, blocks: &[Block]) {
    for block in blocks {
        *text += &self::block(block);
        text.push('\n');
    }
}

fn block(block: &Block) -> String {
    match block {
        Block::Heading(heading) => format!("### {heading}\n"),
        Block::Text(text) => format!("{text}\n"),
        Block::List(items) => items.iter().map(|item| format!("- {item}\n")).collect(),
        Block::Table(table) => self::table(table),
        Block::Chart(chart) => format!("![{}: {}]({})\n", chart.title, chart.about, chart.file),
        Block::More(summary, inner) => {
            let mut text = format!("<details><summary>{summary}</summary>\n\n");
            blocks(&mut text, inner);
            text + "</details>\n"
        }
    }
}

fn table(table: &Table) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule = |column: usize| {
        if table.numbers && column > 0 {
            "---:"
        } else {
            "---"
        }
    };
    let rules: Vec<String> = (0..table.head.len())
        .map(|column| rule(column).to_owned())
        .collect();
    let mut text = line(&table.head) + &line(&rules);
    text.extend(table.rows.iter().map(|row| line(row)));
    text
}
