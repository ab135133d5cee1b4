//! Pictures as SVG, on white, so that they can be read on a light and on a dark page.

use std::fmt::Write;

/// How wide all pictures are.
pub const WIDTH: f64 = 900.0;
/// The colour of what is read.
pub const TEXT: &str = "#24292f";
/// The colour of what lies behind.
pub const FAINT: &str = "#d0d7de";
/// The colours of series, told apart by colour-blind eyes too.
pub const COLOURS: [&str; 4] = ["#0072b2", "#999999", "#e69f00", "#009e73"];

/// A picture in the making.
pub struct Svg {
    body: String,
    height: f64,
}

impl Svg {
    /// White, with a title.
    pub fn new(height: f64, title: &str) -> Self {
        let mut svg = Self {
            body: String::new(),
            height,
        };
        svg.rectangle(0.0, 0.0, WIDTH, height, "#ffffff");
        svg.text(20.0, 28.0, "start", 16, title);
        svg
    }

    /// Adds an element.
    pub fn push(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing into a String never fails.
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    /// A filled one.
    pub fn rectangle(&mut self, x: f64, y: f64, width: f64, height: f64, colour: &str) {
        self.push(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}"/>"#
        ));
    }

    /// A straight one.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.push(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" stroke-width="{width}"/>"#
        ));
    }

    /// A line of text; `anchor` is start, middle or end.
    pub fn text(&mut self, x: f64, y: f64, anchor: &str, size: u32, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.push(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}" fill="{TEXT}">{text}</text>"#
        ));
    }

    /// The file's text.
    pub fn finish(self) -> String {
        let Self { body, height } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
             height=\"{height:.0}\" font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">\n\
             {body}</svg>\n"
        )
    }
}
