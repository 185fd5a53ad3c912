//! RFC 4303's requirements (`requirements.toml`) against the comments at code and tests that name them:
//! `docs/rfc4303.md` is made of both, and cannot differ from them.

mod page;
mod tags;

use std::fs;
use std::path::Path;

use serde::Deserialize;
use tags::Tag;

const PAGE: &str = "docs/rfc4303.md";
const COMMAND: &str = "CULVERT_BLESS=1 cargo test -p culvert-tests --test rfc4303";

/// The RFC's own words, as it writes them; `says` is for what it says without any of them, and means.
const LEVELS: [&str; 10] = [
    "MUST",
    "MUST NOT",
    "SHALL",
    "SHOULD",
    "SHOULD NOT",
    "MAY",
    "must",
    "should",
    "should not",
    "says",
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Requirements {
    section: Vec<Section>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    number: String,
    title: String,
    requirement: Vec<Requirement>,
}

/// A sentence of the RFC. Either code is tagged with its id, or it says why there is none.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Requirement {
    /// The section's number, a dash, a slug.
    id: String,
    /// One of [`LEVELS`].
    level: String,
    /// The sentence in short.
    text: String,
    /// Why Culvert does not do it.
    not_met: Option<String>,
    /// Why it does not bind Culvert.
    not_applicable: Option<String>,
    /// Why code has no test.
    untested: Option<String>,
    /// What else a reader must know of how it is met.
    note: Option<String>,
}

impl Requirements {
    fn all(&self) -> impl Iterator<Item = &Requirement> {
        self.section.iter().flat_map(|section| &section.requirement)
    }
}

/// What of the list and the tags does not go together.
fn problems(requirements: &Requirements, tags: &[Tag]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut known = Vec::new();
    for section in &requirements.section {
        for requirement in &section.requirement {
            let id = requirement.id.as_str();
            if id
                .strip_prefix(&section.number)
                .and_then(|slug| slug.strip_prefix('-'))
                .is_none()
            {
                problems.push(format!(
                    "{id}: begins with its section's number, {}-",
                    section.number
                ));
            }
            if known.contains(&id) {
                problems.push(format!("{id}: stands twice in requirements.toml"));
            }
            known.push(id);
            let code = tags.iter().any(|tag| tag.id == id && !tag.is_test);
            let test = tags.iter().any(|tag| tag.id == id && tag.is_test);
            let own = requirement.problem(code, test);
            problems.extend(own.map(|problem| format!("{id}: {problem}")));
        }
    }
    let unknown = tags.iter().filter(|tag| !known.contains(&tag.id.as_str()));
    problems
        .extend(unknown.map(|tag| format!("{}: {} is not in requirements.toml", tag.file, tag.id)));
    problems
}

impl Requirement {
    fn problem(&self, code: bool, test: bool) -> Option<&'static str> {
        let whys = [&self.not_met, &self.not_applicable];
        let reasons = whys.iter().filter(|why| why.is_some()).count();
        if !LEVELS.contains(&self.level.as_str()) {
            Some("its level is none of the RFC's words")
        } else if reasons == 2 {
            Some("is either not_met or not_applicable")
        } else if reasons == 1 && (code || test) {
            Some("is tagged, so it is met: take the reason why not away")
        } else if reasons == 1 && self.untested.is_some() {
            Some("what is not met needs no reason for having no test")
        } else if reasons == 0 && !code {
            Some("no code is tagged: tag it, or say not_met or not_applicable and why")
        } else if reasons == 0 && !test && self.untested.is_none() {
            Some("no test is tagged: tag one, or say untested and why")
        } else if test && self.untested.is_some() {
            Some("a test is tagged: take untested away")
        } else {
            None
        }
    }
}

#[test]
fn the_page_is_what_the_tags_say() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.parent().unwrap();
    let list = fs::read_to_string(here.join("rfc4303/requirements.toml")).unwrap();
    let requirements: Requirements = toml::from_str(&list).unwrap();
    let tags = tags::in_tree(root).unwrap();
    let problems = problems(&requirements, &tags);
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));

    let wanted = page::write(&requirements, &tags);
    let path = root.join(PAGE);
    if std::env::var_os("CULVERT_BLESS").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap_or_default();
    if let Some((have, want)) = page.lines().zip(wanted.lines()).find(|(a, b)| a != b) {
        panic!("{PAGE} is stale; run: {COMMAND}\nit has   {have}\nit wants {want}");
    }
    assert!(page == wanted, "{PAGE} is stale; run: {COMMAND}");
}

#[test]
fn what_does_not_go_together_is_told() {
    let list = |more: &str| -> Requirements {
        toml::from_str(&format!(
            "[[section]]\nnumber = \"2.4\"\ntitle = \"Padding\"\n[[section.requirement]]\n\
             id = \"2.4-x\"\nlevel = \"MUST\"\ntext = \"x\"\n{more}"
        ))
        .unwrap()
    };
    let tag = |id: &str, is_test| Tag {
        id: id.to_owned(),
        file: "a.rs".to_owned(),
        item: "x".to_owned(),
        is_test,
    };
    let (code, test) = (tag("2.4-x", false), tag("2.4-x", true));
    let both = [code.clone(), test.clone()];
    let code = [code];
    let cases: [(&str, &[Tag], &str); 9] = [
        ("", &both, ""),
        ("", &[], "no code is tagged"),
        ("", &code, "no test is tagged"),
        ("untested = \"y\"", &code, ""),
        ("untested = \"y\"", &both, "take untested away"),
        ("not_met = \"y\"", &[], ""),
        ("not_met = \"y\"", &code, "take the reason why not away"),
        ("not_met = \"y\"\nnot_applicable = \"z\"", &[], "either"),
        (
            "not_applicable = \"y\"",
            &[tag("2.4-y", false)],
            "2.4-y is not in",
        ),
    ];
    for (more, tags, wanted) in cases {
        let found = problems(&list(more), tags).join("; ");
        assert_eq!(found.is_empty(), wanted.is_empty(), "{more}: {found}");
        assert!(found.contains(wanted), "{more}: {found}");
    }
}
