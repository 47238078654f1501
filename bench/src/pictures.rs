//! Pictures of the results, as SVG that is readable on light and on dark pages: no background, middle
//! colours, and ink that follows the reader's preference.

use std::fmt::Display;

use anyhow::Result;
use plotters::coord::Shift;
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::prelude::{DrawingArea, IntoDrawingArea, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontFamily, FontStyle, IntoTextStyle, RGBColor, ShapeStyle, TextStyle};

use crate::page::group;
use crate::results::{CellResult, Outcome, Results};

const INK: RGBColor = RGBColor(0x6E, 0x77, 0x81);
const FAINT: RGBColor = RGBColor(0x8C, 0x95, 0x9F);
const OURS: RGBColor = RGBColor(0x2F, 0x81, 0xF7);
const OURS_LIGHT: RGBColor = RGBColor(0x3F, 0xB6, 0xD9);
const RED: RGBColor = RGBColor(0xD9, 0x4F, 0x45);
const ORANGE: RGBColor = RGBColor(0xD9, 0x8A, 0x2B);
const YELLOW: RGBColor = RGBColor(0xC9, 0xA9, 0x2C);
const GREEN: RGBColor = RGBColor(0x3F, 0xA3, 0x5F);
const PURPLE: RGBColor = RGBColor(0xA3, 0x71, 0xF7);
const PINK: RGBColor = RGBColor(0xD6, 0x6B, 0xB3);
const INDIGO: RGBColor = RGBColor(0x6A, 0x5F, 0xD9);

/// What makes the ink darker on light pages and lighter on dark ones.
const STYLE: &str = "<style>text[fill=\"#6E7781\"]{fill:#424a53}\
    @media (prefers-color-scheme:dark){text[fill=\"#6E7781\"]{fill:#c9d1d9}}</style>\n";

/// The back end divides sizes of fonts by this.
const UNIT: f64 = 1.24;

/// The colour of a rule, in all pictures.
fn colour(rule: &str) -> RGBColor {
    match rule {
        "davylamp" => OURS,
        "threshold, limit 0" => RED,
        "threshold, limit 3" => ORANGE,
        "threshold, limit 5" => YELLOW,
        "z-test, 5 %" => PURPLE,
        "z-test, 1 %" => PINK,
        "Mann-Whitney" | "davylamp, tolerance 0, finite horizon" => GREEN,
        "davylamp, tolerance 0, calibrated" => INDIGO,
        "oracle SPRT" => INK,
        _ => OURS_LIGHT,
    }
}

/// The picture with this name; none without results for it.
pub(crate) fn draw(results: &Results, name: &str) -> Result<Option<String>> {
    let cells = group(results, name);
    if cells.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    match name {
        "good" => good(&cells, &mut svg)?,
        "sizes" => sizes(&cells, &mut svg)?,
        "efficiency" => efficiency(&cells, &mut svg)?,
        "rollout" => rollout(&cells, &mut svg)?,
        _ => return Ok(None),
    }
    // The style follows the first tag.
    if let Some(end) = svg.find("<svg").and_then(|start| Some(start + svg.get(start..)?.find('>')? + 1)) {
        svg.insert_str(end, STYLE);
    }
    Ok(Some(svg))
}

/// One row per scenario, one dot per rule.
fn good(cells: &[&CellResult], svg: &mut String) -> Result<()> {
    const RULES: [&str; 8] = [
        "davylamp",
        "davylamp, tolerance 0, calibrated",
        "threshold, limit 0",
        "threshold, limit 3",
        "threshold, limit 5",
        "z-test, 5 %",
        "z-test, 1 %",
        "Mann-Whitney",
    ];
    let row = 46;
    let height = 110 + row * length(cells.len());
    let canvas = Canvas::new(svg, 860, height);
    let (left, right, top) = (270, 830, 64);
    canvas.legend(left, &RULES)?;
    let scale = Scale::log(0.01, 100.0, left + 30, right);
    let bottom = top + row * length(cells.len());
    for (percent, label) in [(0.01, "0.01 %"), (0.1, "0.1 %"), (1.0, "1 %"), (10.0, "10 %"), (100.0, "100 %")]
    {
        let x = scale.at(percent);
        canvas.line(&[(x, top), (x, bottom)], &FAINT.mix(if label == "1 %" { 0.9 } else { 0.25 }), 1)?;
        canvas.text(label, (x, bottom + 8), HPos::Center, VPos::Top, 12, INK)?;
    }
    canvas.text("0", (left, bottom + 8), HPos::Center, VPos::Top, 12, INK)?;
    canvas.text("promised", (scale.at(1.0), top - 2), HPos::Center, VPos::Bottom, 11, INK)?;
    for (index, cell) in (0..).zip(cells) {
        let y = top + row * index + row / 2;
        canvas.text(&cell.title, (left - 18, y), HPos::Right, VPos::Center, 13, INK)?;
        if index % 2 == 0 {
            canvas.bar((left - 8, y - row / 2), (right + 8, y + row / 2), &FAINT.mix(0.1))?;
        }
        // A lane for each rule, so that none hides another.
        for (lane, rule) in (0..).zip(RULES) {
            if let Some(result) = cell.rule(rule) {
                let x = if result.fraction > 0.0 { scale.at(100.0 * result.fraction) } else { left };
                canvas.dot((x, y - 18 + 5 * lane), 4, colour(rule), true)?;
            }
        }
    }
    canvas.text(
        "good canaries rolled back within an hour",
        (middle(left, right), bottom + 28),
        HPos::Center,
        VPos::Top,
        12,
        INK,
    )
}

/// One line per rule over the size of the regression.
fn sizes(cells: &[&CellResult], svg: &mut String) -> Result<()> {
    const RULES: [&str; 9] = [
        "davylamp, tolerance 0",
        "davylamp",
        "threshold, limit 0",
        "threshold, limit 3",
        "threshold, limit 5",
        "z-test, 5 %",
        "z-test, 1 %",
        "Mann-Whitney",
        "oracle SPRT",
    ];
    let canvas = Canvas::new(svg, 860, 480);
    let (left, right, top, bottom) = (70, 640, 30, 420);
    let ratio = |cell: &CellResult| cell.title.trim_start_matches('×').parse::<f64>().unwrap_or(1.0);
    let across = Scale::log(1.15, 10.5, left, right);
    let up = Scale::log(0.1, 120.0, bottom, top);
    for cell in cells {
        let x = across.at(ratio(cell));
        canvas.line(&[(x, top), (x, bottom)], &FAINT.mix(0.25), 1)?;
        canvas.text(&cell.title, (x, bottom + 8), HPos::Center, VPos::Top, 12, INK)?;
    }
    for (minutes, label) in [
        (0.1, "6 s"),
        (0.5, "30 s"),
        (1.0, "1 min"),
        (2.0, "2 min"),
        (5.0, "5 min"),
        (10.0, "10 min"),
        (30.0, "30 min"),
        (60.0, "1 h"),
        (120.0, "2 h"),
    ] {
        let y = up.at(minutes);
        canvas.line(&[(left, y), (right, y)], &FAINT.mix(0.25), 1)?;
        canvas.text(label, (left - 8, y), HPos::Right, VPos::Center, 12, INK)?;
    }
    let bound: Vec<(i32, i32)> = cells
        .iter()
        .filter_map(|cell| Some((across.at(ratio(cell)), up.at(cell.kl_bound?.max(0.1)))))
        .collect();
    canvas.line(&bound, &INK.mix(0.9), 3)?;
    let mut labels: Vec<(i32, &str, RGBColor)> = Vec::new();
    if let Some(&(_, y)) = bound.last() {
        labels.push((y, "bound", INK));
    }
    for rule in RULES.iter().rev() {
        let points: Vec<((i32, i32), bool)> = cells
            .iter()
            .filter_map(|cell| {
                let result = cell.rule(rule)?;
                let found = result.fraction >= 0.5;
                found
                    .then(|| ((across.at(ratio(cell)), up.at(result.minutes.mean)), result.fraction >= 0.995))
            })
            .collect();
        let line: Vec<(i32, i32)> = points.iter().map(|(point, _)| *point).collect();
        canvas.line(&line, &colour(rule).mix(0.8), 2)?;
        for (point, always) in &points {
            canvas.dot(*point, 5, colour(rule), *always)?;
        }
        if let Some(&(_, y)) = line.last() {
            labels.push((y, rule, colour(rule)));
        }
    }
    // Labels beside the ends of their lines, moved apart where they would touch.
    labels.sort_by_key(|(y, ..)| *y);
    let mut free = top;
    for (y, rule, colour) in labels {
        let y = y.max(free);
        free = y + 17;
        canvas.text(rule, (right + 24, y), HPos::Left, VPos::Center, 13, colour)?;
    }
    canvas.text(
        "errors of the canary per the stable version's",
        (middle(left, right), bottom + 28),
        HPos::Center,
        VPos::Top,
        12,
        INK,
    )?;
    canvas.text(
        "mean time until rolled back; hollow: not in every run",
        (left, top - 8),
        HPos::Left,
        VPos::Bottom,
        12,
        INK,
    )
}

/// One dot per service and rule.
fn efficiency(cells: &[&CellResult], svg: &mut String) -> Result<()> {
    const RULES: [&str; 5] = [
        "davylamp, tolerance 0, calibrated",
        "davylamp, tolerance 0",
        "davylamp, tolerance 0, finite horizon",
        "davylamp",
        "oracle SPRT",
    ];
    const HIGHEST: f64 = 4.0;
    let canvas = Canvas::new(svg, 860, 420);
    let (left, right, top, bottom) = (60, 830, 56, 360);
    canvas.legend(left, &RULES)?;
    let across = Scale::log(1.8, 65.0, left, right);
    let up = Scale::log(0.85, HIGHEST, bottom, top);
    for (bound, label) in
        [(2.0, "2 min"), (5.0, "5 min"), (10.0, "10 min"), (20.0, "20 min"), (30.0, "30 min"), (60.0, "1 h")]
    {
        let x = across.at(bound);
        canvas.line(&[(x, top), (x, bottom)], &FAINT.mix(0.25), 1)?;
        canvas.text(label, (x, bottom + 8), HPos::Center, VPos::Top, 12, INK)?;
    }
    for (times, label) in [(1.0, "1"), (1.5, "1.5"), (2.0, "2"), (3.0, "3"), (4.0, "≥ 4")] {
        let y = up.at(times);
        let strong = label == "1" || label == "1.5";
        canvas.line(&[(left, y), (right, y)], &FAINT.mix(if strong { 0.8 } else { 0.25 }), 1)?;
        canvas.text(label, (left - 8, y), HPos::Right, VPos::Center, 12, INK)?;
    }
    for rule in RULES.iter().rev() {
        for cell in cells {
            if let Some((bound, times)) = cell.kl_bound.zip(cell.rule(rule).and_then(|rule| rule.per_bound)) {
                canvas.dot(
                    (across.at(bound), up.at(times.min(HIGHEST))),
                    5,
                    colour(rule),
                    times <= HIGHEST,
                )?;
            }
        }
    }
    canvas.text(
        "bound: the least mean time that any valid test can have",
        (middle(left, right), bottom + 28),
        HPos::Center,
        VPos::Top,
        12,
        INK,
    )?;
    canvas.text("mean time per bound", (left, top - 8), HPos::Left, VPos::Bottom, 12, INK)
}

/// One bar per scenario and driver.
fn rollout(cells: &[&CellResult], svg: &mut String) -> Result<()> {
    const DRIVERS: [(&str, &str); 6] = [
        ("davylamp", "davylamp"),
        ("davylamp, tolerance 0, impact 25 %", "davylamp, strict"),
        ("threshold, limit 0", "threshold, limit 0"),
        ("threshold, limit 3", "threshold, limit 3"),
        ("Mann-Whitney, each step", "M-W, each step"),
        ("Mann-Whitney, each minute", "M-W, each minute"),
    ];
    const OUTCOMES: [(Outcome, RGBColor, &str); 3] = [
        (Outcome::Promoted, OURS, "promoted"),
        (Outcome::Paused, YELLOW, "paused"),
        (Outcome::RolledBack, RED, "rolled back"),
    ];
    let (left, top, row, column, gap) = (290, 84, 28, 134, 34);
    let canvas = Canvas::new(svg, 1100, top + 2 * gap + row * length(cells.len()));
    let mut x = left;
    for (_, colour, label) in OUTCOMES {
        canvas.bar((x, 12), (x + 12, 24), &colour.mix(0.9))?;
        canvas.text(label, (x + 18, 18), HPos::Left, VPos::Center, 13, INK)?;
        x += 110;
    }
    canvas.text("beside each bar: median minutes", (x + 10, 18), HPos::Left, VPos::Center, 13, INK)?;
    for (index, (_, driver)) in (0..).zip(DRIVERS) {
        canvas.text(driver, (left + column * index, 50), HPos::Left, VPos::Center, 12, INK)?;
    }
    let mut y = top - row;
    let mut heading = "";
    for cell in cells {
        let now = if cell.name.contains("-x") || cell.name.contains("-20%") || cell.name.ends_with("all") {
            "a bad version"
        } else {
            "a good version"
        };
        y += row;
        if now != heading {
            heading = now;
            y += if y > top { gap } else { 0 };
            canvas.text(heading, (left - 14, y - 8), HPos::Right, VPos::Center, 12, FAINT)?;
            canvas.line(&[(left, y - 4), (left + 6 * column - 20, y - 4)], &FAINT.mix(0.5), 1)?;
        }
        let middle = y + row / 2;
        let title = cell.title.trim_start_matches("good, ");
        canvas.text(title, (left - 14, middle), HPos::Right, VPos::Center, 13, INK)?;
        for (index, (driver, _)) in (0..).zip(DRIVERS) {
            let Some(result) = cell.rule(driver) else { continue };
            let from = left + column * index;
            let scale = Scale::linear(0.0, 1.0, from, from + column - 46);
            let mut before = 0.0;
            for (outcome, colour, _) in OUTCOMES {
                let after = before + result.share(outcome);
                if result.count(outcome) > 0 {
                    canvas.bar(
                        (scale.at(before), y + 6),
                        (scale.at(after), y + row - 6),
                        &colour.mix(0.9),
                    )?;
                }
                before = after;
            }
            let median = format!("{:.0}", result.minutes.median);
            canvas.text(&median, (scale.at(1.0) + 6, middle), HPos::Left, VPos::Center, 12, INK)?;
        }
    }
    Ok(())
}

/// From numbers to pixels.
struct Scale {
    log: bool,
    from: f64,
    to: f64,
    first: i32,
    last: i32,
}

impl Scale {
    fn log(from: f64, to: f64, first: i32, last: i32) -> Self {
        Self { log: true, from: libm::log(from), to: libm::log(to), first, last }
    }

    fn linear(from: f64, to: f64, first: i32, last: i32) -> Self {
        Self { log: false, from, to, first, last }
    }

    #[expect(clippy::cast_possible_truncation, reason = "limited to the picture")]
    fn at(&self, value: f64) -> i32 {
        let value = if self.log { libm::log(value) } else { value };
        let share = ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0);
        (f64::from(self.first) + share * f64::from(self.last - self.first)).round() as i32
    }
}

fn length(rows: usize) -> i32 {
    i32::try_from(rows).unwrap_or(i32::MAX)
}

fn middle(from: i32, to: i32) -> i32 {
    i32::midpoint(from, to)
}

/// What is drawn on, in pixels.
struct Canvas<'a> {
    area: DrawingArea<SVGBackend<'a>, Shift>,
}

impl<'a> Canvas<'a> {
    fn new(svg: &'a mut String, width: u32, height: i32) -> Self {
        let size = (width, u32::try_from(height).unwrap_or(width));
        Self { area: SVGBackend::with_string(svg, size).into_drawing_area() }
    }

    fn text(
        &self,
        text: &str,
        at: (i32, i32),
        across: HPos,
        down: VPos,
        size: u32,
        colour: RGBColor,
    ) -> Result<()> {
        let style: TextStyle<'_> =
            (FontFamily::SansSerif, f64::from(size) * UNIT, FontStyle::Normal).into_text_style(&self.area);
        let style = style.color(&colour).pos(Pos::new(across, down));
        self.area.draw(&Text::new(text, at, style)).map_err(failed)
    }

    fn line(&self, points: &[(i32, i32)], colour: &impl Color, width: u32) -> Result<()> {
        let style = ShapeStyle { color: colour.to_rgba(), filled: false, stroke_width: width };
        self.area.draw(&PathElement::new(points.to_vec(), style)).map_err(failed)
    }

    fn dot(&self, at: (i32, i32), radius: i32, colour: RGBColor, filled: bool) -> Result<()> {
        let style = ShapeStyle { color: colour.mix(0.9), filled, stroke_width: 2 };
        self.area.draw(&Circle::new(at, radius, style)).map_err(failed)
    }

    fn bar(&self, from: (i32, i32), to: (i32, i32), colour: &impl Color) -> Result<()> {
        let style = ShapeStyle { color: colour.to_rgba(), filled: true, stroke_width: 0 };
        self.area.draw(&Rectangle::new([from, to], style)).map_err(failed)
    }

    /// The names of rules with their colours, in rows at the top.
    fn legend(&self, left: i32, rules: &[&str]) -> Result<()> {
        let (mut x, mut y) = (left, 12);
        for rule in rules {
            let width = 34 + 7 * length(rule.chars().count());
            if x + width > 850 {
                (x, y) = (left, y + 20);
            }
            self.dot((x, y), 5, colour(rule), true)?;
            self.text(rule, (x + 10, y), HPos::Left, VPos::Center, 12, INK)?;
            x += width;
        }
        Ok(())
    }
}

fn failed(error: impl Display) -> anyhow::Error {
    anyhow::anyhow!("a picture cannot be drawn: {error}")
}
