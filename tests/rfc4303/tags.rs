//! Finds the tags: comments as `// RFC 4303 §2.4 [2.4-pad-bytes]: …`, of which the section is optional; several
//! ids stand in one pair of brackets, with commas. It reads lines and their indentation, as rustfmt leaves them.

use std::fs;
use std::path::{Path, PathBuf};

/// A requirement's id in a comment, and where that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) id: String,
    /// Path from the workspace's root, with `/`.
    pub(crate) file: String,
    /// The item that the comment stands before or in; empty at the top of a file.
    pub(crate) item: String,
    pub(crate) is_test: bool,
}

/// The tags of every Rust and Python file below `root`, in the order of paths and lines.
pub(crate) fn in_tree(root: &Path) -> Result<Vec<Tag>, String> {
    let mut files = Vec::new();
    collect(root, &mut files).map_err(|error| format!("{}: {error}", root.display()))?;
    files.sort();
    let mut tags = Vec::new();
    for path in files {
        let text =
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let relative = path.strip_prefix(root).unwrap_or(&path);
        tags.extend(in_text(&relative.to_string_lossy(), &text)?);
    }
    Ok(tags)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            // Not what is built, nor these files, which speak of tags.
            if !name.starts_with('.') && name != "target" && !path.ends_with("tests/rfc4303") {
                collect(&path, files)?;
            }
        } else if name.ends_with(".rs") || name.ends_with(".py") {
            files.push(path);
        }
    }
    Ok(())
}

/// The tags in one file, each once for an item.
fn in_text(file: &str, text: &str) -> Result<Vec<Tag>, String> {
    let lines: Vec<Line> = text.lines().map(Line::new).collect();
    let tests_only = format!("/{file}").contains("/tests/") || file.ends_with("/tests.rs");
    let mut tags = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let ids = line.comment().map_or(Ok(Vec::new()), ids);
        for id in ids.map_err(|problem| format!("{file}:{}: {problem}", at + 1))? {
            let place = Place::of(&lines, at);
            let tag = Tag {
                id,
                file: file.to_owned(),
                item: place.name,
                is_test: tests_only || place.in_tests,
            };
            if !tags.contains(&tag) {
                tags.push(tag);
            }
        }
    }
    Ok(tags)
}

/// The ids that a comment names.
fn ids(comment: &str) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for rest in comment.split("RFC 4303").skip(1) {
        let reference = |c: char| c == '§' || c == '.' || c == ' ' || c.is_ascii_alphanumeric();
        let Some(list) = rest.trim_start_matches(reference).strip_prefix('[') else {
            continue;
        };
        let (list, _) = list
            .split_once(']')
            .ok_or("a tag must end on the line that it begins on")?;
        found.extend(list.split(',').map(|id| id.trim().to_owned()));
    }
    Ok(found)
}

#[derive(Clone, Copy)]
struct Line<'a> {
    indent: usize,
    text: &'a str,
}

impl<'a> Line<'a> {
    fn new(line: &'a str) -> Self {
        let text = line.trim();
        Self {
            indent: line.len() - line.trim_start().len(),
            text,
        }
    }

    /// The text, if the line is a comment of Rust or Python, and no attribute.
    fn comment(self) -> Option<&'a str> {
        let is_comment = self.text.starts_with("//")
            || self.text.starts_with('#') && !self.text.starts_with("#[");
        is_comment.then_some(self.text)
    }
}

/// Where a comment stands.
struct Place {
    name: String,
    in_tests: bool,
}

impl Place {
    fn of(lines: &[Line], at: usize) -> Self {
        let around = around(lines, at);
        let in_tests = around
            .iter()
            .any(|(kind, name)| *kind == "mod" && *name == "tests");
        let mut path = around.into_iter();
        let named = before_item(lines, at).or_else(|| path.next());
        let owner = path
            .next()
            .filter(|(kind, _)| ["impl", "trait", "class"].contains(kind));
        let name = match (owner, named) {
            (Some((_, owner)), Some((_, name))) => format!("{owner}::{name}"),
            (_, Some((_, name))) => name.to_owned(),
            (_, None) => String::new(),
        };
        Self { name, in_tests }
    }
}

/// The item whose documentation or head the comment at `at` is.
fn before_item<'a>(lines: &[Line<'a>], at: usize) -> Option<(&'a str, &'a str)> {
    if lines[at].text.starts_with("//!") {
        return None;
    }
    let mut in_attribute = false;
    let next = lines[at..].iter().find(|line| {
        if in_attribute || line.text.starts_with("#[") {
            in_attribute = !line.text.ends_with(']');
            return false;
        }
        line.comment().is_none() && !line.text.starts_with('@')
    })?;
    item(next.text)
}

/// The items that the line at `at` is in, the innermost first.
fn around<'a>(lines: &[Line<'a>], at: usize) -> Vec<(&'a str, &'a str)> {
    let mut limit = lines[at].indent;
    let mut found = Vec::new();
    for line in lines[..at].iter().rev() {
        if line.text.is_empty() || line.indent >= limit {
            continue;
        }
        // The end of a head over several lines: its beginning stands as far left.
        let is_end = [")", "}", "]", "where", "{"]
            .iter()
            .any(|end| line.text.starts_with(end));
        limit = line.indent + usize::from(is_end);
        found.extend(item(line.text));
    }
    found
}

/// Kind and name of the item that begins with this line.
fn item(line: &str) -> Option<(&str, &str)> {
    let mut words = line;
    if let Some(rest) = words.strip_prefix("pub") {
        let rest = rest.strip_prefix('(').map_or(rest, |restriction| {
            restriction.split_once(')').map_or(rest, |(_, rest)| rest)
        });
        words = rest.strip_prefix(' ')?;
    }
    for qualifier in ["const unsafe ", "async ", "unsafe ", "extern \"C\" "] {
        words = words.strip_prefix(qualifier).unwrap_or(words);
    }
    if words.starts_with("const fn ") {
        words = &words["const ".len()..];
    }
    if let Some((name, "{" | "{{")) = words.split_once("! ") {
        return name_at_start(name).map(|name| ("macro", name));
    }
    let (kind, rest) = words.split_once([' ', '<'])?;
    match kind {
        "fn" | "struct" | "enum" | "trait" | "mod" | "const" | "static" | "type" | "def"
        | "class" => Some((kind, name_at_start(rest)?)),
        "impl" => {
            // `Trait for Type`, `T: Bound> Type<T>`, or `Type<'_>`.
            let rest = rest.split_once(" for ").map_or(rest, |(_, of)| of);
            let rest = match rest.split_once("> ") {
                Some((_, of)) if !of.starts_with('{') => of,
                _ => rest,
            };
            Some((kind, name_at_start(rest)?))
        }
        _ => None,
    }
}

fn name_at_start(text: &str) -> Option<&str> {
    let end = text
        .find(|c: char| c != '_' && !c.is_alphanumeric())
        .unwrap_or(text.len());
    (end > 0).then(|| &text[..end])
}

#[cfg(test)]
mod unit {
    use super::*;

    /// Items of the tags in a file, and whether they are in tests. `@` stands for a tag.
    fn places(file: &str, text: &str) -> Vec<(String, bool)> {
        let text = text.replace('@', "RFC 4303 §1 [1-x]");
        in_text(file, &text)
            .unwrap()
            .into_iter()
            .map(|tag| (tag.item, tag.is_test))
            .collect()
    }

    #[test]
    fn tags_have_one_form() {
        let found = |comment| ids(comment).unwrap();
        assert_eq!(found("// RFC 4303 [2.4-x]: so"), ["2.4-x"]);
        assert_eq!(
            found("/// as RFC 4303 §2.4 [2.4-x, 2.4-y]."),
            ["2.4-x", "2.4-y"]
        );
        assert_eq!(
            found("# RFC 4303 appendix A2.2 [a]; RFC 4303 [b]"),
            ["a", "b"]
        );
        assert!(found("// RFC 4303 §2.4: see [`open`]").is_empty());
        assert!(ids("// RFC 4303 [2.4-x,").is_err());
    }

    #[test]
    fn a_comment_belongs_to_what_it_stands_before_or_in() {
        let text = "\
//! @
/// @
#[expect(
    clippy::x,
    reason = \"y\"
)]
pub(crate) fn first(
    a: u8,
) -> u8 {
    if a == 0 {
        1
    } else {
        // @
        2
    }
}

impl<T: Copy> Window for Ring<T> {
    fn second(&self) {}

    /// @
    const fn third(&self) {}

    fn fourth(
        &self,
    ) where
        T: Clone,
    {
        // @
    }
}

reasons! {
    // @
}

#[cfg(test)]
mod tests {
    proptest! {
        #[test]
        fn fifth() {
            // @
        }
    }
}
";
        let wanted = [
            ("", false),
            ("first", false),
            ("Ring::third", false),
            ("Ring::fourth", false),
            ("reasons", false),
            ("fifth", true),
        ];
        let wanted = wanted.map(|(name, test)| (name.to_owned(), test));
        assert_eq!(places("a/src/b.rs", text), wanted);
    }

    #[test]
    fn python_is_read_too() {
        let text =
            "# @\ndef first(a):\n    pass\n\nclass Sa:\n    def second(self):\n        # @\n";
        let wanted = [("first", true), ("Sa::second", true)];
        let wanted = wanted.map(|(name, test)| (name.to_owned(), test));
        assert_eq!(places("tests/interop/a.py", text), wanted);
    }
}
