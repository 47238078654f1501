//! One [`Frame`] as lines for a terminal of some width. Pure.

use crossterm::style::{Color, Stylize};
use davylamp_sim::Frame;

use crate::figures::{clock, count, counted, float, index, whole};

/// Pieces of text with their colours.
#[derive(Debug, Default)]
pub(crate) struct Line(Vec<(String, Option<Color>)>);

impl Line {
    fn plain(text: impl Into<String>) -> Self {
        Self(vec![(text.into(), None)])
    }

    fn and(mut self, text: impl Into<String>) -> Self {
        self.0.push((text.into(), None));
        self
    }

    fn coloured(mut self, text: impl Into<String>, colour: Color) -> Self {
        self.0.push((text.into(), Some(colour)));
        self
    }

    /// As it is written, cut to `width` characters, and how many there are.
    pub(crate) fn written(&self, width: usize, colour: bool) -> (String, usize) {
        let mut text = String::new();
        let mut length = 0;
        for (piece, ink) in &self.0 {
            let piece: String = piece.chars().take(width - length).collect();
            length += piece.chars().count();
            match ink.filter(|_| colour) {
                Some(ink) => text.push_str(&piece.with(ink).to_string()),
                None => text.push_str(&piece),
            }
        }
        (text, length)
    }
}

/// So wide that a line is still taken in at a glance.
const WIDEST: usize = 100;
/// Before each bar.
const LABEL: usize = 12;
/// After it.
const VALUE: usize = 32;

/// Always as many lines, so that nothing jumps.
pub(crate) fn picture(frame: &Frame, width: usize) -> Vec<Line> {
    let width = width.min(WIDEST);
    let bar = |label, percent, colour, unit| bar(label, percent, colour, unit, width);
    let message = wrap(&frame.message, width.saturating_sub(2));
    let message = |i: usize| Line::plain(format!("  {}", message.get(i).map_or("", String::as_str)));
    vec![
        Line::default().coloured("─".repeat(width), Color::DarkGrey),
        state(frame),
        message(0),
        message(1),
        version("stable", &frame.images.0, frame.ready.0, frame.errors.0),
        version("canary", &frame.images.1, frame.ready.1, frame.errors.1),
        bar("weight", frame.weight, Color::Cyan, "as the route says"),
        bar("share", frame.share, Color::Cyan, "of requests lately"),
        bar("worse", frame.evidence.0, Color::Red, "of what rolls back"),
        bar("safe", frame.evidence.1, Color::Green, "of what the step needs"),
        Line::plain(format!(
            "  {:<LABEL$}{}, {} lost",
            "users",
            counted(frame.requests, "request"),
            count(frame.lost)
        )),
    ]
}

fn state(frame: &Frame) -> Line {
    let line = Line::plain(format!("  {:>7}  ", clock(frame.at))).coloured(&frame.state, state_colour(frame));
    let line = match frame.step {
        (_, 0) => line,
        (step, of) => line.and(format!(" · step {step} of {of}")),
    };
    if frame.running { line } else { line.coloured("   the controller is down", Color::Red) }
}

fn state_colour(frame: &Frame) -> Color {
    match frame.phase.as_str() {
        "Healthy" => Color::Green,
        "Paused" => Color::Yellow,
        "Degraded" => Color::Red,
        _ if frame.state == "RollingBack" => Color::Red,
        _ => Color::Cyan,
    }
}

fn version(role: &str, image: &str, ready: u32, errors: Option<f64>) -> Line {
    if image.is_empty() {
        return Line::plain(format!("  {role:<LABEL$}-"));
    }
    let errors = errors.map_or_else(|| "no requests".to_owned(), |errors| format!("{errors:.2} % errors"));
    let pods = counted(u64::from(ready), "pod");
    Line::plain(format!("  {role:<LABEL$}{image:<24} {:<14} {errors}", format!("{pods} ready")))
}

fn bar(label: &str, percent: f64, colour: Color, unit: &str, width: usize) -> Line {
    let space = width.saturating_sub(2 + LABEL + VALUE);
    let full = index(whole(percent.clamp(0.0, 100.0) / 100.0 * float(space as u64))).min(space);
    Line::plain(format!("  {label:<LABEL$}"))
        .coloured("█".repeat(full), colour)
        .coloured("░".repeat(space - full), Color::DarkGrey)
        .and(format!("{percent:>6.1} % {unit}"))
}

/// Lines of whole words, no longer than `width` unless a word is.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_at_any_width() {
        let frame = Frame { weight: 30.0, share: 130.0, message: "two words".repeat(60), ..Frame::default() };
        let heights: Vec<_> = [0, 1, 20, 80, 300]
            .map(|width| {
                let lines = picture(&frame, width);
                for line in &lines {
                    let (text, length) = line.written(width, false);
                    assert_eq!(text.chars().count(), length);
                    assert!(length <= width);
                }
                lines.len()
            })
            .into();
        assert_eq!(heights, [11; 5]);
    }

    #[test]
    fn colours_come_only_when_asked_for() {
        let line = Line::plain("a").coloured("b", Color::Red);
        assert_eq!(line.written(5, false).0, "ab");
        assert!(line.written(5, true).0.contains('\u{1b}'));
        assert_eq!(line.written(5, true).1, 2);
    }

    #[test]
    fn words_stay_whole() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("longer-than-that no", 5), ["longer-than-that", "no"]);
        assert_eq!(wrap("", 5), [""; 0]);
    }
}
