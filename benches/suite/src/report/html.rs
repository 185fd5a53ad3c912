//! The report as one page that needs nothing else.

use super::document::{Block, Document, Table};
use super::svg::{self, escaped};

const STYLE: &str = "\
:root{color-scheme:light dark;--text:#1f2328;--soft:#59636e;--line:#d1d9e0;--back:#fff;--shade:#f6f8fa;--link:#0757b8}
@media(prefers-color-scheme:dark){:root{--text:#e6edf3;--soft:#a5adb6;--line:#3d444d;--back:#0d1117;--shade:#151b23;--link:#6cb0ff}}
body{margin:0 auto;padding:1rem;max-width:54rem;background:var(--back);color:var(--text);font:16px/1.5 system-ui,-apple-system,'DejaVu Sans',sans-serif;overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.3rem;margin-top:2.5rem;border-bottom:1px solid var(--line)}h3{font-size:1.05rem;margin-top:1.8rem}
a{color:var(--link)}nav{color:var(--soft)}summary{cursor:pointer;color:var(--link)}
code{font:.85em ui-monospace,'DejaVu Sans Mono',monospace;background:var(--shade);padding:.1em .25em;border-radius:4px}
.wide{overflow-x:auto;margin:1rem 0}table{border-collapse:collapse;font-size:.875rem}
th,td{border:1px solid var(--line);padding:.3rem .5rem;text-align:left;vertical-align:top}th{background:var(--shade)}
.numbers th+th,.numbers td+td{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.numbers th+th{white-space:normal}.numbers td:first-child{min-width:8rem}
figure{margin:1rem 0}svg{display:block;max-width:100%;height:auto}
";

pub(super) fn of(document: &Document) -> String {
    let mut body = format!("<h1>{}</h1>\n", escaped(document.title));
    blocks(&mut body, &document.intro);
    let links: Vec<String> = document
        .sections
        .iter()
        .map(|section| {
            format!(
                "<a href=\"#{}\">{}</a>",
                section.anchor(),
                escaped(section.title)
            )
        })
        .collect();
    if !links.is_empty() {
        body += &format!("<nav>{}</nav>\n", links.join(" · "));
    }
    for section in &document.sections {
        body += &format!(
            "<h2 id=\"{}\">{}</h2>\n",
            section.anchor(),
            escaped(section.title)
        );
        blocks(&mut body, &section.blocks);
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n\
         <style>\n{STYLE}{}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escaped(document.title),
        svg::STYLE,
    )
}

fn blocks(html: &mut String, blocks: &[Block]) {
    for block in blocks {
        *html += &self::block(block);
        html.push('\n');
    }
}

fn block(block: &Block) -> String {
    match block {
        Block::Heading(heading) => format!("<h3>{}</h3>", inline(heading)),
        Block::Text(text) => format!("<p>{}</p>", inline(text)),
        Block::List(items) => {
            let items: String = items
                .iter()
                .map(|item| format!("<li>{}</li>\n", inline(item)))
                .collect();
            format!("<ul>\n{items}</ul>")
        }
        Block::Table(table) => self::table(table),
        Block::Chart(chart) => format!("<figure>\n{}</figure>", chart.inline_text()),
        Block::More(summary, inner) => {
            let mut html = format!("<details><summary>{}</summary>\n", inline(summary));
            blocks(&mut html, inner);
            html + "</details>"
        }
    }
}

fn table(table: &Table) -> String {
    let row = |cells: &[String], tag: &str| {
        let cells: String = cells
            .iter()
            .map(|cell| format!("<{tag}>{}</{tag}>", inline(cell)))
            .collect();
        format!("<tr>{cells}</tr>\n")
    };
    let class = if table.numbers {
        " class=\"numbers\""
    } else {
        ""
    };
    let rows: String = table.rows.iter().map(|cells| row(cells, "td")).collect();
    // What is wider than a small screen is moved by itself, also with the keyboard.
    format!(
        "<div class=\"wide\" tabindex=\"0\"><table{class}>\n<thead>{}</thead>\n<tbody>{rows}</tbody></table></div>",
        row(&table.head, "th").trim_end()
    )
}

/// Text with the marks of Markdown that texts have.
fn inline(text: &str) -> String {
    let mut html = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['`', '*', '[']) {
        let (plain, marked) = rest.split_at(at);
        html += &escaped(plain);
        let (piece, after) = code(marked)
            .or_else(|| bold(marked))
            .or_else(|| link(marked))
            .unwrap_or_else(|| (escaped(&marked[..1]), &marked[1..]));
        html += &piece;
        rest = after;
    }
    html + &escaped(rest)
}

fn code(text: &str) -> Option<(String, &str)> {
    let (code, after) = text.strip_prefix('`')?.split_once('`')?;
    Some((format!("<code>{}</code>", escaped(code)), after))
}

fn bold(text: &str) -> Option<(String, &str)> {
    let (bold, after) = text.strip_prefix("**")?.split_once("**")?;
    Some((format!("<strong>{}</strong>", inline(bold)), after))
}

fn link(text: &str) -> Option<(String, &str)> {
    let (name, after) = text.strip_prefix('[')?.split_once("](")?;
    let (target, after) = after.split_once(')')?;
    Some((
        format!("<a href=\"{}\">{}</a>", escaped(target), inline(name)),
        after,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks() {
        assert_eq!(
            inline("a < b: **`x*y`**, [record](a.json) [2]"),
            "a &lt; b: <strong><code>x*y</code></strong>, <a href=\"a.json\">record</a> [2]"
        );
        assert_eq!(inline("`open"), "`open");
    }
}
