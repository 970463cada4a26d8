//! How the demo looks: sections, what is seen in them, and whether each claim held.

use std::io::IsTerminal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::time::Instant;

/// Prints the story and remembers what did not hold.
#[derive(Debug)]
pub struct Stage {
    colours: bool,
    began: Instant,
    held: u32,
    broken: Vec<String>,
}

/// A colour or weight of the terminal.
#[derive(Clone, Copy, Debug)]
pub enum Paint {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Cyan,
}

impl Stage {
    /// Begins. Panics are told by the act that they break from now on.
    #[expect(
        clippy::new_without_default,
        reason = "it changes how the process panics"
    )]
    pub fn new() -> Self {
        // A claim that breaks by a panic is told once, by the act that it broke.
        std::panic::set_hook(Box::new(|_| {}));
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            colours,
            began: Instant::now(),
            held: 0,
            broken: Vec::new(),
        }
    }

    /// Text in a colour, where there are colours.
    pub fn paint(&self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Bold => "1",
            Paint::Dim => "2",
            Paint::Red => "31",
            Paint::Green => "32",
            Paint::Yellow => "33",
            Paint::Cyan => "36",
        };
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.into()
        }
    }

    /// The first line.
    pub fn title(&self, text: &str, below: &str) {
        println!(
            "{}\n{}",
            self.paint(Paint::Bold, text),
            self.paint(Paint::Dim, below)
        );
    }

    /// A section: whatever fails in it is told, and the next one goes on.
    pub fn act(&mut self, heading: &str, play: impl FnOnce(&mut Self)) {
        let at = format!("{:>4.1} s", self.began.elapsed().as_secs_f64());
        println!(
            "\n{} {}  {}",
            self.paint(Paint::Cyan, "▌"),
            self.paint(Paint::Bold, heading),
            self.paint(Paint::Dim, &at)
        );
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| play(self))) {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("it panicked");
            self.claim(heading, false);
            self.lines(Paint::Red, said);
        }
    }

    /// A line of what is seen.
    pub fn line(&self, text: &str) {
        println!("    {text}");
    }

    /// Something that has been done or begun, with the time since the beginning.
    pub fn step(&self, text: &str) {
        let at = format!("{:>5.1} s", self.began.elapsed().as_secs_f64());
        self.line(&format!("{}  {text}", self.paint(Paint::Dim, &at)));
    }

    /// Lines of what is seen.
    pub fn lines(&self, paint: Paint, text: &str) {
        for line in text.lines() {
            self.line(&self.paint(paint, line));
        }
    }

    /// What has just been shown, and whether it held.
    pub fn claim(&mut self, claim: &str, holds: bool) {
        if holds {
            self.held += 1;
            println!("  {} {claim}", self.paint(Paint::Green, "✓"));
        } else {
            self.broken.push(claim.into());
            println!(
                "  {} {}",
                self.paint(Paint::Red, "✗"),
                self.paint(Paint::Red, claim)
            );
        }
    }

    /// Whether everything held so far.
    pub fn all_held(&self) -> bool {
        self.broken.is_empty()
    }

    /// How long it has been going on.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The last lines. Whether everything held.
    pub fn conclude(&self) -> bool {
        let seconds = self.elapsed().as_secs_f64();
        let total = self.held as usize + self.broken.len();
        println!();
        if self.all_held() {
            let text =
                format!("all {total} claims held, in {seconds:.0} s; nothing is left behind");
            println!("{}", self.paint(Paint::Green, &text));
        } else {
            let text = format!("{} of {total} claims did not hold:", self.broken.len());
            println!("{}", self.paint(Paint::Red, &text));
            for claim in &self.broken {
                println!("  {} {claim}", self.paint(Paint::Red, "✗"));
            }
        }
        self.all_held()
    }
}
