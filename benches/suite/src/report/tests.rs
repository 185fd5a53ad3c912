//! The committed records and their report, records that cannot be, and reports of some records and of all.

mod samples;

use std::path::Path;

use culvert_tests::record::Results;
use serde_json::Value;

use super::*;

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench-results")
}

/// The records of a folder: name and content.
fn records(folder: &Path) -> Vec<(String, Value)> {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("20") {
            let text = std::fs::read_to_string(&path).unwrap();
            records.push((name, serde_json::from_str(&text).unwrap()));
        }
    }
    records
}

fn validator() -> jsonschema::Validator {
    jsonschema::validator_for(&serde_json::from_str(&schema().unwrap()).unwrap()).unwrap()
}

/// The schema's file is among what is checked.
#[test]
fn the_committed_report_is_what_the_records_give() {
    check(&committed()).unwrap();
}

#[test]
fn the_committed_records_are_as_the_schema_has_them() {
    let validator = validator();
    let records = records(&committed());
    assert!(!records.is_empty());
    for (name, record) in records {
        if let Err(error) = validator.validate(&record) {
            panic!("{name}: {}: {error}", error.instance_path);
        }
    }
}

/// The schema and the types refuse the same, and the error says which file and which field.
#[test]
fn what_cannot_be_a_record_is_refused() {
    type Change = fn(&mut Value);
    let cases: [(Change, bool, &str); 12] = [
        (
            |record| record["commit"] = 5.into(),
            true,
            "commit: invalid type",
        ),
        (
            |record| record["color"] = 5.into(),
            true,
            "unknown field `color`",
        ),
        (
            |record| record["results"]["color"] = 5.into(),
            true,
            "results.color: unknown field `color`",
        ),
        (
            |record| record["results"]["what"] = "else".into(),
            true,
            "results.what: unknown variant `else`",
        ),
        (
            |record| record["results"]["series"][1]["rounds"][0]["gbit_per_s"] = "fast".into(),
            true,
            "results.series[1].rounds[0].gbit_per_s: invalid type",
        ),
        (
            |record| drop(record["host"].as_object_mut().unwrap().remove("cpu")),
            true,
            "host: missing field `cpu`",
        ),
        (
            |record| record["results"]["series"][0]["rounds"][0]["gbit_per_s"] = (-1).into(),
            false,
            "results.series[0].rounds[0].gbit_per_s: -1 cannot be",
        ),
        (
            |record| record["results"]["series"][0]["rounds"] = Value::Array(Vec::new()),
            false,
            "results.series[0].rounds: are empty",
        ),
        (
            |record| record["results"]["series"][14]["rounds"][1]["wire"]["geneve"] = 7.into(),
            false,
            "results.series[14].rounds[1].wire.geneve: 7 in clear",
        ),
        (
            |record| record["date"] = "28 November".into(),
            false,
            "date: \"28 November\" is not",
        ),
        (
            |record| record["date"] = "2026-11-29".into(),
            false,
            "make it 2026-11-29-amd-epyc-2-iperf.json",
        ),
        (
            |record| record["schema"] = 7.into(),
            false,
            "schema: 7 is not 1",
        ),
    ];
    let good = samples::iperf();
    let name = good.file_name();
    let good = serde_json::to_value(good).unwrap();
    let validator = validator();
    assert!(validator.is_valid(&good));
    for (change, by_schema, expected) in cases {
        let mut bad = good.clone();
        change(&mut bad);
        assert_eq!(
            validator.is_valid(&bad),
            !by_schema,
            "the schema on {expected}"
        );
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(&name), bad.to_string()).unwrap();
        let error = format!("{:#}", write(folder.path()).unwrap_err());
        assert!(
            error.starts_with(&name) && error.contains(expected),
            "{error}"
        );
    }
}

/// Every section, once.
const SECTIONS: [&str; 12] = [
    "Beside the kernel's IPsec",
    "Throughput",
    "Throughput of a core",
    "UDP by size of packets",
    "Round trips under load",
    "The host port alone",
    "Clocks of a packet",
    "Nanoseconds of a packet",
    "Instructions of a packet",
    "More SAs, more workers",
    "When it breaks",
    "The records",
];

fn sections(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let titles = text.lines().filter_map(|line| line.strip_prefix("## "));
    titles.map(str::to_owned).collect()
}

#[test]
fn all_records_give_every_section_and_good_charts() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    samples::write(folder);
    let validator = validator();
    for (name, record) in records(folder) {
        assert!(validator.is_valid(&record), "{name}");
    }
    let files = write(folder).unwrap();
    assert_eq!(sections(folder), SECTIONS);
    let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
    let mut charts = 0;
    for path in files
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "svg"))
    {
        let text = std::fs::read_to_string(path).unwrap();
        let svg = roxmltree::Document::parse(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let root = svg.root_element();
        assert_eq!(root.attribute("role"), Some("img"));
        for name in ["title", "desc", "style"] {
            assert!(
                root.children()
                    .any(|child| child.has_tag_name(("http://www.w3.org/2000/svg", name)))
            );
        }
        assert!(
            !text.contains("NaN") && !text.contains("inf\""),
            "{}",
            path.display()
        );
        assert!(readme.contains(&format!(
            "]({})",
            path.file_name().unwrap().to_string_lossy()
        )));
        let is_text =
            |node: &roxmltree::Node| node.has_tag_name(("http://www.w3.org/2000/svg", "text"));
        svg.descendants().filter(is_text).for_each(assert_fits);
        charts += 1;
    }
    assert_eq!(page.matches("<svg ").count(), charts);
    assert!(!page.contains("<script") && !page.contains("<img"));
    // Rates of an emulated guest are nowhere.
    assert!(!readme.contains("throughput-guest"));

    check(folder).unwrap();
    // What was measured is no longer there: its charts go, too.
    std::fs::remove_file(folder.join("instructions.json")).unwrap();
    let error = check(folder).unwrap_err().to_string();
    assert!(
        error.contains("README.md") && error.contains("instructions-of-a-packet.svg"),
        "{error}"
    );
    write(folder).unwrap();
    assert!(!folder.join("instructions-of-a-packet.svg").exists());
    check(folder).unwrap();
}

/// As wide as letters of DejaVu Sans are, which are wide ones.
fn assert_fits(text: roxmltree::Node) {
    let class = text.attribute("class").unwrap();
    let letter = match class {
        "title" => 9.4,
        "soft" => 6.9,
        "group" => 8.6,
        _ => 7.7,
    };
    let words = text.text().unwrap();
    let width = letter * words.chars().count() as f64;
    let x: f64 = text.attribute("x").unwrap().parse().unwrap();
    let (left, right) = match class {
        class if class.ends_with("end") => (x - width, x),
        class if class.ends_with("middle") => (x - width / 2.0, x + width / 2.0),
        _ => (x, x + width),
    };
    assert!(
        left >= 0.0 && right <= svg::WIDTH,
        "{words:?} is from {left} to {right}"
    );
}

#[test]
fn sections_without_records_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder).unwrap();
    assert_eq!(sections(folder), [""; 0]);
    check(folder).unwrap();

    samples::keep(folder, &samples::faults());
    write(folder).unwrap();
    assert_eq!(sections(folder), ["When it breaks", "The records"]);

    // Without the kernel beside it, nothing is compared with it.
    let mut alone = samples::iperf();
    if let Results::Iperf(iperf) = &mut alone.results {
        iperf
            .series
            .retain(|series| series.side == "culvert" && series.load == "tcp");
        for round in iperf
            .series
            .iter_mut()
            .flat_map(|series| &mut series.rounds)
        {
            round.latency = None;
            round.cores.clear();
        }
    }
    samples::keep(folder, &alone);
    write(folder).unwrap();
    assert_eq!(
        sections(folder),
        ["Throughput", "When it breaks", "The records"]
    );
}

#[test]
fn only_the_newest_of_a_kind_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut record = samples::faults();
    samples::keep(folder, &record);
    record.date = "2026-12-01".to_owned();
    samples::keep(folder, &record);
    write(folder).unwrap();
    let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let (shown, older) = readme.split_once("Older records").unwrap();
    assert!(
        shown.contains("2026-12-01-amd-epyc-2-faults.json")
            && !shown.contains("2026-11-28-amd-epyc-2-faults.json")
    );
    assert!(older.contains("2026-11-28-amd-epyc-2-faults.json"));
}

#[test]
#[ignore = "for looking at it: writes target/report-of-samples"]
fn samples_to_look_at() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/report-of-samples");
    std::fs::create_dir_all(&folder).unwrap();
    samples::write(&folder);
    write(&folder).unwrap();
}
