//! Progress on a terminal: a spinner with the step's name, and a bar with the time left where the step has parts.

use std::{
    io::IsTerminal,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use qonvert::pipeline::Progress;

use crate::Common;

/// Shows progress on stderr, if that is a terminal that nothing else is told on.
pub struct Bar(Option<Mutex<ProgressBar>>);

impl Bar {
    /// A bar for a run under these options.
    pub fn new(common: &Common) -> Self {
        let shown = std::io::stderr().is_terminal() && !common.quiet && common.verbose == 0;
        Self(shown.then(|| Mutex::new(ProgressBar::hidden())))
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.lock().unwrap_or_else(PoisonError::into_inner).finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bar {
    fn step(&self, name: &'static str) {
        let Some(bar) = &self.0 else { return };
        let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        bar.finish_and_clear();
        *bar = ProgressBar::new_spinner().with_style(style("{spinner} {msg} ({elapsed})")).with_message(name);
        bar.enable_steady_tick(Duration::from_millis(100));
    }

    fn part(&self, done: usize, total: usize) {
        let Some(bar) = &self.0 else { return };
        let bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
        if bar.length() != Some(total as u64) {
            bar.set_length(total as u64);
            bar.set_style(style("{spinner} {msg} [{wide_bar}] {pos}/{len}, {eta} left"));
        }
        bar.set_position(done as u64);
    }
}
