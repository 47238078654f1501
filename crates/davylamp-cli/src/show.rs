//! What people see of a simulation while it runs: lines that stay, and on a terminal a picture below them that is drawn
//! again and again in place. Everything is written whole, so that Ctrl-C never meets half a picture.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crossterm::cursor::{Hide, MoveToColumn, MoveUp, Show as ShowCursor};
use crossterm::style::{Color, Stylize};
use crossterm::terminal::{Clear, ClearType, size};
use crossterm::{Command, execute};
use davylamp_sim::{Entry, Frame, Kind, Report, Scenario, SimError, simulate_open};
use davylamp_world::World;

use crate::figures::clock;
use crate::pace::{Pace, Speed};
use crate::picture::{picture, wrap};

/// Where it is shown.
#[derive(Debug)]
pub(crate) struct Show<W: Write> {
    out: W,
    terminal: bool,
    colour: bool,
    /// The lengths of the picture's lines, while there is one.
    drawn: Vec<usize>,
    /// Entries of this run that were told.
    told: usize,
    /// Writing failed, so nothing more is written.
    failed: Option<io::Error>,
}

impl Show<io::Stdout> {
    /// Standard output, coloured when it is a terminal and colours are wanted.
    pub(crate) fn stdout(colour: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        Self::new(io::stdout(), terminal, terminal && colour)
    }

    /// From now on Ctrl-C brings the cursor back before it ends the process.
    pub(crate) fn catch_interrupt(&self) -> Result<(), ctrlc::Error> {
        if !self.terminal {
            return Ok(());
        }
        ctrlc::set_handler(|| {
            let mut out = io::stdout().lock();
            // The process ends whether this works or not.
            let _ = execute!(out, ShowCursor);
            std::process::exit(130);
        })
    }
}

impl<W: Write> Show<W> {
    pub(crate) const fn new(out: W, terminal: bool, colour: bool) -> Self {
        Self { out, terminal, colour, drawn: Vec::new(), told: 0, failed: None }
    }

    /// Runs the scenario at this speed, tells its whole timeline, and draws it meanwhile unless the speed is `max`.
    /// `open` gets its world first.
    pub(crate) fn run(
        &mut self,
        scenario: &Scenario,
        seed: u64,
        speed: Speed,
        open: &mut dyn FnMut(&World),
    ) -> Result<Report, SimError> {
        self.told = 0;
        let mut pace = Pace::new(speed);
        let report = simulate_open(scenario, seed, open, &mut |frame| {
            // Once nobody reads any more, there is nothing to wait for.
            if self.failed.is_none() && speed != Speed::Max {
                pace.keep(frame.at);
                self.frame(frame, pace.draws());
            }
        })?;
        self.end(&report.timeline);
        Ok(report)
    }

    /// Writes lines that stay.
    pub(crate) fn say(&mut self, text: &str) {
        let lines: Vec<_> = text.lines().flat_map(|line| wrapped(line, self.width())).collect();
        self.write(&lines, None);
    }

    /// The same, in bold.
    pub(crate) fn title(&mut self, text: &str) {
        let lines = wrapped(text, self.width()).into_iter();
        let lines: Vec<_> =
            lines.map(|line| if self.colour { line.bold().to_string() } else { line }).collect();
        self.write(&lines, None);
    }

    /// Tells the frame's news, and draws it.
    fn frame(&mut self, frame: &Frame, draws: bool) {
        let news = self.rows(&frame.news);
        self.told += frame.news.len();
        if self.terminal && (draws || !news.is_empty()) {
            self.write(&news, Some(frame));
        } else if !news.is_empty() {
            self.write(&news, None);
        }
    }

    /// Takes the picture away and tells what of the timeline is not told yet.
    fn end(&mut self, timeline: &[Entry]) {
        let rows = self.rows(timeline.get(self.told..).unwrap_or_default());
        self.write(&rows, None);
    }

    /// What went wrong on the way.
    pub(crate) fn close(mut self) -> io::Result<()> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Where it was written.
    #[cfg(test)]
    pub(crate) const fn written(&self) -> &W {
        &self.out
    }

    fn rows(&self, entries: &[Entry]) -> Vec<String> {
        let width = self.width();
        entries.iter().flat_map(|entry| rows(entry, width, self.colour)).collect()
    }

    fn width(&self) -> usize {
        if self.terminal { screen().0 } else { usize::MAX }
    }

    /// Lines that stay go where the picture was, and the next one below them.
    fn write(&mut self, lines: &[String], frame: Option<&Frame>) {
        if self.failed.is_some() || (lines.is_empty() && frame.is_none() && self.drawn.is_empty()) {
            return;
        }
        let (width, height) = if self.terminal { screen() } else { (usize::MAX, 0) };
        let mut text = String::new();
        if !self.drawn.is_empty() {
            // A terminal that became narrower has broken the picture's lines.
            let rows: usize = self.drawn.iter().map(|length| length.div_ceil(width).max(1)).sum();
            code(&mut text, MoveToColumn(0));
            code(&mut text, MoveUp(u16::try_from(rows.min(height.saturating_sub(1))).unwrap_or(u16::MAX)));
        }
        let end = |text: &mut String| {
            if self.terminal {
                code(text, Clear(ClearType::UntilNewLine));
            }
            text.push('\n');
        };
        for line in lines {
            text.push_str(line);
            end(&mut text);
        }
        let had = !self.drawn.is_empty();
        let mut drawn = Vec::new();
        if let Some(frame) = frame {
            for line in picture(frame, width.saturating_sub(1)).iter().take(height.saturating_sub(1)) {
                let (line, length) = line.written(width.saturating_sub(1), self.colour);
                text.push_str(&line);
                end(&mut text);
                drawn.push(length);
            }
        }
        if had {
            code(&mut text, Clear(ClearType::FromCursorDown));
        }
        match (had, drawn.is_empty()) {
            (false, false) => code(&mut text, Hide),
            (true, true) => code(&mut text, ShowCursor),
            (true, false) | (false, true) => {}
        }
        self.drawn = drawn;
        if let Err(error) = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            self.failed = Some(error);
        }
    }
}

impl<W: Write> Drop for Show<W> {
    fn drop(&mut self) {
        if !self.drawn.is_empty() {
            let _ = execute!(self.out, ShowCursor);
        }
    }
}

/// Columns and rows, now.
fn screen() -> (usize, usize) {
    let (width, height) = size().unwrap_or((80, 24));
    (usize::from(width.max(1)), usize::from(height.max(1)))
}

fn code(text: &mut String, command: impl Command) {
    // A String takes everything.
    let _ = command.write_ansi(text);
}

/// Lines of whole words; each keeps the margin of the first.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    let words = line.trim_start();
    let margin = &line[..line.len() - words.len()];
    match wrap(words, width.saturating_sub(margin.len())) {
        lines if lines.len() > 1 => lines.into_iter().map(|line| format!("{margin}{line}")).collect(),
        _ => vec![line.to_owned()],
    }
}

/// One entry as lines: when, what, and its sentence beside them.
fn rows(entry: &Entry, width: usize, colour: bool) -> Vec<String> {
    let (kind, ink) = match entry.kind {
        Kind::Event => ("event", Color::Cyan),
        Kind::Decision => ("decision", Color::Green),
        Kind::Fault => ("fault", Color::Red),
    };
    let at = clock(Duration::from_millis(entry.at_ms));
    let kind = format!("{kind:<8}");
    let kind = if colour { kind.with(ink).to_string() } else { kind };
    let mut rows = wrap(&entry.text, width.saturating_sub(BEFORE).max(20));
    if let Some(first) = rows.first_mut() {
        *first = format!("{at:>8}  {kind}  {first}");
    }
    for row in rows.iter_mut().skip(1) {
        *row = format!("{:BEFORE$}{row}", "");
    }
    rows
}

/// Columns before an entry's sentence.
const BEFORE: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> Entry {
        Entry { at_ms: 61_000, kind: Kind::Event, text: text.to_owned() }
    }

    fn plain() -> Show<Vec<u8>> {
        Show::new(Vec::new(), false, false)
    }

    #[test]
    fn without_a_terminal_there_are_only_lines() {
        let mut show = plain();
        let news = vec![entry("one")];
        show.frame(&Frame { news: news.clone(), ..Frame::default() }, true);
        show.frame(&Frame::default(), true);
        show.end(&[entry("one"), entry("two")]);
        let text = String::from_utf8(show.written().clone()).unwrap();
        assert_eq!(text, "    1:01  event     one\n    1:01  event     two\n");
    }

    #[test]
    fn long_sentences_stay_in_their_column() {
        let rows = rows(&entry("some words that take more than one line"), 40, false);
        assert_eq!(
            rows,
            ["    1:01  event     some words that take", "                    more than one line"]
        );
    }

    #[test]
    fn a_picture_is_drawn_in_place_and_taken_away() {
        let mut show = Show::new(Vec::new(), true, false);
        show.frame(&Frame::default(), true);
        show.frame(&Frame::default(), false);
        let height = show.drawn.len();
        show.frame(&Frame::default(), true);
        show.end(&[]);
        let text = String::from_utf8(show.written().clone()).unwrap();
        assert_eq!(text.matches(&format!("\u{1b}[{height}A")).count(), 2);
        assert_eq!((text.matches("\u{1b}[?25l").count(), text.matches("\u{1b}[?25h").count()), (1, 1));
        assert!(text.ends_with("\u{1b}[J\u{1b}[?25h"));
    }
}
