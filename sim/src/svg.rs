//! Line charts as SVG, from numbers alone: the same numbers give the same bytes.
//!
//! Owns axes, ticks, lines, dots and legends. Knows nothing of what is drawn, and loads no font,
//! script or picture.

use core::fmt::Write as _;

use serde_json::{Value, json};

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// (x, y), by x. What is not finite is left out.
    pub points: Vec<(f64, f64)>,
    /// Which colour of the palette; equal numbers, equal colours.
    pub colour: usize,
    /// How it is drawn.
    pub style: Style,
}

/// How a series is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// A line.
    Line,
    /// A dashed line.
    Dashed,
    /// Dots alone.
    Dots,
}

/// A chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Below the x axis.
    pub x: Axis,
    /// Beside the y axis.
    pub y: Axis,
    /// Lines.
    pub series: Vec<Series>,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What, with its unit.
    pub name: String,
    /// Equal factors take equal room.
    pub logarithmic: bool,
}

impl Axis {
    /// An axis with equal steps.
    pub fn linear(name: &str) -> Self {
        Self { name: name.to_owned(), logarithmic: false }
    }

    /// An axis with equal factors; leaves out what is not positive.
    pub fn logarithmic(name: &str) -> Self {
        Self { name: name.to_owned(), logarithmic: true }
    }

    fn at(&self, value: f64) -> f64 {
        if self.logarithmic { value.log10() } else { value }
    }
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 55.0;

/// Told apart by most kinds of colour blindness: Okabe and Ito (2008).
const PALETTE: [&str; 8] =
    ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31"];

impl Chart {
    /// What it shows, for machines. What is not finite is left out.
    pub fn json(&self) -> Value {
        let points = |series: &Series| -> Vec<[f64; 2]> {
            let finite = |(x, y): &&(f64, f64)| x.is_finite() && y.is_finite();
            series.points.iter().filter(finite).map(|&(x, y)| [x, y]).collect()
        };
        let series = self.series.iter();
        let series = series.map(|series| json!({ "name": series.name, "points": points(series) }));
        json!({
            "title": self.title,
            "x": self.x.name,
            "y": self.y.name,
            "series": series.collect::<Vec<_>>(),
        })
    }

    /// The SVG file.
    pub fn render(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points).copied();
        let xs = Scale::of(points().map(|(x, _)| self.x.at(x)), self.x.logarithmic);
        let ys = Scale::of(points().map(|(_, y)| self.y.at(y)), self.y.logarithmic);
        let place = |(x, y): (f64, f64)| -> Option<(f64, f64)> {
            let (x, y) = (self.x.at(x), self.y.at(y));
            (x.is_finite() && y.is_finite()).then(|| {
                (
                    LEFT + xs.part(x) * (WIDTH - LEFT - RIGHT),
                    HEIGHT - BOTTOM - ys.part(y) * (HEIGHT - TOP - BOTTOM),
                )
            })
        };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        text(&mut svg, (LEFT, 22.0), "start", 15, &self.title);
        self.axes(&mut svg, &xs, &ys);
        for series in &self.series {
            let placed: Vec<(f64, f64)> =
                series.points.iter().filter_map(|&point| place(point)).collect();
            draw(&mut svg, series, &placed);
        }
        for (row, series) in (0u32..).zip(&self.series) {
            let y = TOP + 10.0 + 18.0 * f64::from(row);
            let x = WIDTH - RIGHT + 15.0;
            draw(&mut svg, series, &[(x, y - 4.0), (x + 24.0, y - 4.0)]);
            text(&mut svg, (x + 30.0, y), "start", 12, &series.name);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn axes(&self, svg: &mut String, xs: &Scale, ys: &Scale) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in xs.ticks() {
            let x = LEFT + xs.part(tick) * (right - LEFT);
            line(svg, (x, TOP), (x, bottom), "#e4e4e4");
            text(svg, (x, bottom + 17.0), "middle", 12, &xs.label(tick));
        }
        for tick in ys.ticks() {
            let y = bottom - ys.part(tick) * (bottom - TOP);
            line(svg, (LEFT, y), (right, y), "#e4e4e4");
            text(svg, (LEFT - 7.0, y + 4.0), "end", 12, &ys.label(tick));
        }
        line(svg, (LEFT, bottom), (right, bottom), "#444444");
        line(svg, (LEFT, TOP), (LEFT, bottom), "#444444");
        text(svg, (f64::midpoint(LEFT, right), HEIGHT - 14.0), "middle", 13, &self.x.name);
        let _ = writeln!(
            svg,
            "<text transform=\"translate(18 {:.1}) rotate(-90)\" text-anchor=\"middle\" \
             font-size=\"13\">{}</text>",
            f64::midpoint(TOP, bottom),
            escape(&self.y.name)
        );
    }
}

/// A range of values (or of their logarithms) with round ends.
struct Scale {
    from: f64,
    to: f64,
    step: f64,
    logarithmic: bool,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64>, logarithmic: bool) -> Self {
        let (low, high) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if low > high {
            return Self { from: 0.0, to: 1.0, step: 0.5, logarithmic };
        }
        // Linear axes start at zero unless all values are far from it.
        let low = if !logarithmic && low > 0.0 && low < 0.6 * high { 0.0 } else { low };
        let span = (high - low).max(if logarithmic { 0.5 } else { 1e-9 * high.abs().max(1e-9) });
        let step = if logarithmic { (span / 6.0).ceil() } else { round_step(span / 6.0) };
        let from = (low / step + 1e-9).floor() * step;
        let to = ((high / step - 1e-9).ceil() * step).max(from + step);
        Self { from, to, step, logarithmic }
    }

    fn part(&self, value: f64) -> f64 {
        (value - self.from) / (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.to - self.from) / self.step).round();
        (0..=20u32)
            .map(f64::from)
            .take_while(move |at| *at <= count)
            .map(|at| self.from + at * self.step)
    }

    fn label(&self, tick: f64) -> String {
        let value = if self.logarithmic { 10f64.powf(tick) } else { tick };
        number(value)
    }
}

/// 1, 2 or 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0].into_iter().find(|times| times * power >= step * 0.999);
    times.unwrap_or(10.0) * power
}

/// Short, for a tick.
fn number(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e5).contains(&size) {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

fn draw(svg: &mut String, series: &Series, placed: &[(f64, f64)]) {
    let colour = PALETTE[series.colour % PALETTE.len()];
    match series.style {
        Style::Dots => {
            for (x, y) in placed {
                let _ = writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>"
                );
            }
        }
        Style::Line | Style::Dashed => {
            let dashes =
                if series.style == Style::Dashed { " stroke-dasharray=\"6 4\"" } else { "" };
            let path: Vec<String> = placed.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" \
                 stroke-width=\"1.8\"{dashes}/>",
                path.join(" ")
            );
        }
    }
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, size: u32, words: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{}</text>",
        escape(words)
    );
}

fn escape(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_its_lines_and_leaves_out_what_is_not_a_number() {
        let chart = Chart {
            title: "a < b".into(),
            x: Axis::logarithmic("nodes"),
            y: Axis::linear("seconds"),
            series: vec![Series {
                name: "one".into(),
                points: vec![(0.0, 1.0), (10.0, 1.0), (100.0, f64::NAN), (1000.0, 5.0)],
                colour: 0,
                style: Style::Line,
            }],
        };
        let svg = chart.render();
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        // The first and the last point, at the ends of the axes.
        assert!(svg.contains("points=\"70.0,300.0 560.0,40.0\""), "{svg}");
        assert_eq!(svg, chart.render());
    }

    #[test]
    fn ticks_are_round() {
        let scale = Scale::of([0.3, 9.4].into_iter(), false);
        assert_eq!(scale.ticks().collect::<Vec<_>>(), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!([0.0, 0.25, 1e-7, 12_345.0].map(number), ["0", "0.25", "1e-7", "12345"]);
    }
}
