//! Just as much of SVG as charts need. Colours are classes, so that a chart can be light or dark as its reader is, also
//! where it is shown as a picture.

/// In every chart's file: it can be made again.
pub(super) const MADE: &str = "<!-- made by culvert-bench report -->";

/// Width of every chart, in which letters still can be read where a small screen halves it.
pub(super) const WIDTH: f64 = 540.0;

/// Number of colours: `s0` to `s6`, which colour-blind readers can tell apart; beside each stands what it is.
pub(super) const COLOURS: usize = 7;

pub(super) const STYLE: &str = "\
.chart{font-family:system-ui,-apple-system,'DejaVu Sans',sans-serif;font-size:13px}
.chart text{fill:#1f2328;paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}
.chart .title{font-size:15px;font-weight:600}.chart .soft{fill:#59636e;font-size:12px}.chart .group{font-weight:600}
.chart .end{text-anchor:end}.chart .middle{text-anchor:middle}
.chart .back{fill:#fff}.chart .grid{stroke:#d1d9e0}.chart .whisker{stroke:#1f2328;stroke-width:1.3;fill:none}
.chart .line{fill:none;stroke-width:2}.chart .lead{fill:none;stroke-width:.7}
.chart .s0{fill:#0072b2;stroke:#0072b2}.chart .s1{fill:#d55e00;stroke:#d55e00}.chart .s2{fill:#57606a;stroke:#57606a}
.chart .s3{fill:#8c959f;stroke:#8c959f}.chart .s4{fill:#00805e;stroke:#00805e}.chart .s5{fill:#a8508a;stroke:#a8508a}
.chart .s6{fill:#9a6700;stroke:#9a6700}.chart .line,.chart .lead{fill:none}
@media(prefers-color-scheme:dark){
.chart text{fill:#e6edf3;stroke:#0d1117}.chart .soft{fill:#a5adb6}
.chart .back{fill:#0d1117}.chart .grid{stroke:#3d444d}.chart .whisker{stroke:#e6edf3}
.chart .s0{fill:#56b4e9;stroke:#56b4e9}.chart .s1{fill:#f0883e;stroke:#f0883e}.chart .s2{fill:#b1bac4;stroke:#b1bac4}
.chart .s3{fill:#7d8590;stroke:#7d8590}.chart .s4{fill:#2fc59b;stroke:#2fc59b}.chart .s5{fill:#e29ac5;stroke:#e29ac5}
.chart .s6{fill:#e3b341;stroke:#e3b341}.chart .line,.chart .lead{fill:none}
}
";

/// What is drawn, one thing after the other.
#[derive(Debug, Default)]
pub(super) struct Drawing {
    body: String,
}

impl Drawing {
    fn add(&mut self, element: &str) {
        self.body += element;
        self.body.push('\n');
    }

    pub(super) fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        self.add(&format!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
            escaped(text)
        ));
    }

    pub(super) fn bar(&mut self, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2]) {
        self.add(&format!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        ));
    }

    /// A line through all points; `dash` as SVG has it.
    pub(super) fn line(&mut self, class: &str, dash: &str, points: &[[f64; 2]]) {
        let points: Vec<String> = points
            .iter()
            .map(|[x, y]| format!("{x:.1},{y:.1}"))
            .collect();
        let dash = match dash {
            "" => String::new(),
            dash => format!(" stroke-dasharray=\"{dash}\""),
        };
        self.add(&format!(
            "<polyline class=\"{class}\"{dash} points=\"{}\"/>",
            points.join(" ")
        ));
    }

    /// One of the shapes: circle, square, triangle, diamond, and the same, slimmer.
    pub(super) fn point(&mut self, class: &str, shape: usize, [x, y]: [f64; 2]) {
        let path = match shape % 7 {
            0 => "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
            1 => "M-4,-4h8v8h-8z",
            2 => "M0,-5L5,4H-5z",
            3 => "M0,-5.5L5.5,0L0,5.5L-5.5,0z",
            4 => "M0,5L5,-4H-5z",
            5 => "M-1.7,-5.5h3.4v11h-3.4z",
            _ => "M-5.5,-1.7v3.4h11v-3.4z",
        };
        self.add(&format!(
            "<path class=\"{class}\" transform=\"translate({x:.1},{y:.1})\" d=\"{path}\"/>"
        ));
    }

    /// Whole.
    pub(super) fn svg(&self, height: f64, title: &str, about: &str, style: Option<&str>) -> String {
        let style = style.map_or_else(String::new, |style| {
            format!("{MADE}\n<style>\n{style}</style>\n")
        });
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" role=\"img\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\">\n<title>{}</title>\n<desc>{}</desc>\n{style}\
             <rect class=\"back\" width=\"{WIDTH}\" height=\"{height}\" rx=\"6\"/>\n{}</svg>\n",
            escaped(title),
            escaped(about),
            self.body
        )
    }
}

/// Text as XML and HTML have it.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
