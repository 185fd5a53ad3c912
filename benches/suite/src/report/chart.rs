//! Two kinds of charts: bars in groups, each with its name and its value, and lines by size.

use super::numbers::{Spread, round, short};
use super::svg::{COLOURS, Drawing, STYLE, WIDTH};

/// A chart, drawn.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) file: String,
    pub(super) title: String,
    /// What it shows, for those who do not see it.
    pub(super) about: String,
    height: f64,
    drawing: Drawing,
}

impl Chart {
    /// For a file of its own.
    pub(super) fn file_text(&self) -> String {
        self.drawing
            .svg(self.height, &self.title, &self.about, Some(STYLE))
    }

    /// For a page that has the style.
    pub(super) fn inline_text(&self) -> String {
        self.drawing
            .svg(self.height, &self.title, &self.about, None)
    }
}

/// What stands above a chart.
#[derive(Clone, Debug)]
pub(super) struct Heading {
    /// Name of its file, without the end.
    pub(super) file: String,
    pub(super) title: String,
    /// Unit, and which way is better.
    pub(super) unit: String,
}

/// Bars that belong together.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) label: String,
    pub(super) rows: Vec<Row>,
}

/// One row of a chart of bars.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) label: String,
    pub(super) colour: usize,
    pub(super) mark: Mark,
}

/// What a row shows.
#[derive(Debug)]
pub(super) enum Mark {
    /// A bar from zero, with a whisker from least to most.
    Bar(Spread),
    /// Three points that rise, on a logarithmic axis: a circle, a diamond, a stroke.
    Points([f64; 3]),
}

/// Where names end and bars begin, where the longest ends.
const LEFT: f64 = 156.0;
const RIGHT: f64 = WIDTH - 64.0;
const RIGHT_OF_POINTS: f64 = WIDTH - 158.0;
const TOP: f64 = 52.0;
const ROW: f64 = 20.0;
const GROUP: f64 = 26.0;

/// Draws bars, or points.
pub(super) fn bars(heading: Heading, groups: &[Group]) -> Chart {
    let rows = || groups.iter().flat_map(|group| &group.rows);
    let points = rows().any(|row| matches!(row.mark, Mark::Points(_)));
    let ends = |row: &Row| match row.mark {
        Mark::Bar(spread) => [0.0, spread.most],
        Mark::Points([first, _, last]) => [first, last],
    };
    let values: Vec<f64> = rows().flat_map(ends).collect();
    let scale = Scale::new(
        points,
        &values,
        [LEFT, if points { RIGHT_OF_POINTS } else { RIGHT }],
    );
    let bottom = TOP
        + groups
            .iter()
            .map(|group| GROUP + ROW * group.rows.len() as f64)
            .sum::<f64>()
        + 4.0;
    let mut drawing = start(&heading);
    for (tick, label) in scale.ticks() {
        let x = scale.at(tick);
        drawing.line("grid", "", &[[x, TOP], [x, bottom]]);
        drawing.text("soft middle", x, bottom + 16.0, &label);
    }
    let mut y = TOP;
    for group in groups {
        drawing.text("group", 12.0, y + 18.0, &group.label);
        y += GROUP;
        for row in &group.rows {
            draw(&mut drawing, row, &scale, y);
            y += ROW;
        }
    }
    let about = about(&heading.unit, groups);
    finish(heading, about, bottom + 28.0, drawing)
}

fn draw(drawing: &mut Drawing, row: &Row, scale: &Scale, y: f64) {
    let class = format!("s{}", row.colour % COLOURS);
    let middle = y + ROW / 2.0;
    drawing.text("end", LEFT - 8.0, middle + 4.5, &row.label);
    let (end, text) = match row.mark {
        Mark::Bar(spread) => {
            let [least, median, most] =
                [spread.least, spread.median, spread.most].map(|value| scale.at(value));
            drawing.bar(
                &class,
                [LEFT, y + 3.0],
                [(median - LEFT).max(0.5), ROW - 6.0],
            );
            if most - least > 1.0 {
                drawing.line("whisker", "", &[[least, middle], [most, middle]]);
                for x in [least, most] {
                    drawing.line("whisker", "", &[[x, middle - 4.0], [x, middle + 4.0]]);
                }
            }
            (most, short(spread.median))
        }
        Mark::Points(values) => {
            let at = values.map(|value| [scale.at(value), middle]);
            drawing.line(&format!("line {class}"), "", &at);
            for (shape, point) in [0, 3, 5].into_iter().zip(at) {
                drawing.point(&class, shape, point);
            }
            (at[2][0], values.map(short).join(" / "))
        }
    };
    drawing.text("", end + 9.0, middle + 4.5, &text);
}

/// A line of a chart of lines.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) label: String,
    pub(super) colour: usize,
    pub(super) points: Vec<(f64, Spread)>,
}

const PLOT_LEFT: f64 = 58.0;
const PLOT_RIGHT: f64 = WIDTH - 216.0;
const PLOT_BOTTOM: f64 = 300.0;

/// Draws lines over what `x` says, which is logarithmic. So is what stands up, where values are so far from each other that the
/// small ones would be lost above a zero.
pub(super) fn lines(mut heading: Heading, x: &str, lines: &[Line]) -> Chart {
    let points = || lines.iter().flat_map(|line| &line.points);
    let mut places: Vec<f64> = points().map(|&(x, _)| x).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let values: Vec<f64> = points()
        .flat_map(|(_, spread)| [spread.least, spread.most])
        .collect();
    let across = Scale::new(true, &places, [PLOT_LEFT + 10.0, PLOT_RIGHT - 10.0]);
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let apart = values.iter().any(|&value| value > 6.0 * least);
    let foot = if apart {
        PLOT_BOTTOM - 10.0
    } else {
        PLOT_BOTTOM
    };
    let up = Scale::new(apart, &values, [foot, TOP + 10.0]);
    heading.unit += match apart {
        true => "; both axes logarithmic",
        false => "; logarithmic across",
    };
    let mut drawing = start(&heading);
    for (tick, label) in up.ticks() {
        let y = up.at(tick);
        drawing.line("grid", "", &[[PLOT_LEFT, y], [PLOT_RIGHT, y]]);
        drawing.text("soft end", PLOT_LEFT - 8.0, y + 4.0, &label);
    }
    let mut last = 0.0;
    for place in places {
        let at = across.at(place);
        drawing.line("grid", "", &[[at, TOP], [at, PLOT_BOTTOM]]);
        if at - last > 40.0 {
            drawing.text("soft middle", at, PLOT_BOTTOM + 16.0, &round(place));
            last = at;
        }
    }
    drawing.text(
        "soft middle",
        f64::midpoint(PLOT_LEFT, PLOT_RIGHT),
        PLOT_BOTTOM + 34.0,
        x,
    );
    let mut ends = Vec::new();
    for line in lines {
        let class = format!("s{}", line.colour % COLOURS);
        let dash = ["", "7 3", "2 3", "9 3 2 3", "4 2", "1 2", "12 4"][line.colour % COLOURS];
        let path: Vec<[f64; 2]> = line
            .points
            .iter()
            .map(|(x, spread)| [across.at(*x), up.at(spread.median)])
            .collect();
        drawing.line(&format!("line {class}"), dash, &path);
        for ((_, spread), &[x, y]) in line.points.iter().zip(&path) {
            drawing.line(
                "whisker",
                "",
                &[[x, up.at(spread.least)], [x, up.at(spread.most)]],
            );
            drawing.point(&class, line.colour, [x, y]);
        }
        if let (Some(&end), Some((_, spread))) = (path.last(), line.points.last()) {
            ends.push((
                end,
                class,
                format!("{} {}", line.label, short(spread.median)),
            ));
        }
    }
    label(&mut drawing, ends);
    let groups: Vec<Group> = lines.iter().map(Line::as_group).collect();
    let about = about(&heading.unit, &groups);
    finish(heading, about, PLOT_BOTTOM + 48.0, drawing)
}

impl Line {
    fn as_group(&self) -> Group {
        let row = |&(x, spread): &(f64, Spread)| Row {
            label: round(x),
            colour: 0,
            mark: Mark::Bar(spread),
        };
        Group {
            label: self.label.clone(),
            rows: self.points.iter().map(row).collect(),
        }
    }
}

/// Names at the ends of lines, moved apart where they would lie on each other.
fn label(drawing: &mut Drawing, mut ends: Vec<([f64; 2], String, String)>) {
    const APART: f64 = 16.0;
    ends.sort_by(|([_, one], ..), ([_, other], ..)| one.total_cmp(other));
    let mut places: Vec<f64> = Vec::new();
    for ([_, y], ..) in &ends {
        let above = places.last().map_or(TOP, |place| place + APART);
        places.push(y.max(above));
    }
    let mut below = PLOT_BOTTOM + APART;
    for place in places.iter_mut().rev() {
        *place = place.min(below - APART);
        below = *place;
    }
    for (([x, y], class, text), place) in ends.into_iter().zip(places) {
        drawing.line(
            &format!("lead {class}"),
            "",
            &[[x + 6.0, y], [PLOT_RIGHT + 10.0, place]],
        );
        drawing.text("", PLOT_RIGHT + 13.0, place + 4.5, &text);
    }
}

fn start(heading: &Heading) -> Drawing {
    let mut drawing = Drawing::default();
    drawing.text("title", 12.0, 23.0, &heading.title);
    drawing.text("soft", 12.0, 41.0, &heading.unit);
    drawing
}

fn finish(heading: Heading, about: String, height: f64, drawing: Drawing) -> Chart {
    Chart {
        file: format!("{}.svg", heading.file),
        title: heading.title,
        about,
        height,
        drawing,
    }
}

/// The chart in words.
fn about(unit: &str, groups: &[Group]) -> String {
    let value = |row: &Row| match row.mark {
        Mark::Bar(spread) => format!("{} {}", row.label, short(spread.median)),
        Mark::Points(values) => format!("{} {}", row.label, values.map(short).join(" / ")),
    };
    let group = |group: &Group| {
        let values: Vec<String> = group.rows.iter().map(value).collect();
        format!("{}: {}", group.label, values.join(", "))
    };
    let groups: Vec<String> = groups.iter().map(group).collect();
    format!("{unit}. {}.", groups.join("; "))
}

/// From values to places.
struct Scale {
    logarithmic: bool,
    values: [f64; 2],
    places: [f64; 2],
}

impl Scale {
    /// The least and the most of `values` are at `places`; a linear one begins at zero.
    fn new(logarithmic: bool, values: &[f64], places: [f64; 2]) -> Self {
        let most = values.iter().copied().fold(0.0, f64::max);
        // Zero has no logarithm: it is shown where the least is that has one.
        let positive = values.iter().copied().filter(|&value| value > 0.0);
        let least = if logarithmic {
            positive.fold(most, f64::min)
        } else {
            0.0
        };
        let values = match most > least {
            true => [least, most],
            // All are the same: in the middle.
            false if most > 0.0 => [most / 2.0, most * 2.0],
            false => [if logarithmic { 0.1 } else { 0.0 }, 1.0],
        };
        Self {
            logarithmic,
            values,
            places,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let [least, most] = self.values;
        let share = match self.logarithmic {
            true => (value.max(least) / least).ln() / (most / least).ln(),
            false => (value - least) / (most - least),
        };
        self.places[0] + share * (self.places[1] - self.places[0])
    }

    /// Round numbers within.
    fn ticks(&self) -> Vec<(f64, String)> {
        let [least, most] = self.values;
        let ticks: Vec<f64> = if self.logarithmic {
            let decades = (most / least).log10();
            let steps: &[f64] = match decades {
                0.0..1.1 => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
                1.1..2.5 => &[1.0, 2.0, 5.0],
                _ => &[1.0],
            };
            let powers = (-6..=12).map(|power| 10_f64.powi(power));
            powers
                .flat_map(|power| steps.iter().map(move |step| step * power))
                .collect()
        } else {
            let power = 10_f64.powf((most / 4.0).log10().floor());
            let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
            let step = steps
                .into_iter()
                .find(|step| most / step <= 5.0)
                .unwrap_or(most);
            (0..=5_u8).map(|number| f64::from(number) * step).collect()
        };
        let within = ticks
            .into_iter()
            .filter(|tick| (least..=most).contains(tick));
        within.map(|tick| (tick, round(tick))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales() {
        let linear = Scale::new(false, &[3.0, 16.0], [100.0, 260.0]);
        assert_eq!([linear.at(0.0), linear.at(8.0)], [100.0, 180.0]);
        let labels: Vec<String> = linear.ticks().into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["0", "5", "10", "15"]);

        let logarithmic = Scale::new(true, &[0.1, 10.0], [0.0, 100.0]);
        assert!((logarithmic.at(1.0) - 50.0).abs() < 1e-9);
        assert_eq!(
            logarithmic.ticks().first().map(|(_, label)| label.as_str()),
            Some("0.1")
        );
        // Nothing, and all the same, are places, too.
        assert!(Scale::new(true, &[0.0], [0.0, 1.0]).at(0.0).is_finite());
        assert!(
            Scale::new(true, &[5.0, 5.0], [0.0, 1.0])
                .at(5.0)
                .is_finite()
        );
    }
}
