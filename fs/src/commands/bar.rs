//! How far something is, on a terminal.

use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks at how far it is.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// A line on standard error that is drawn anew until this is dropped; none where that is no terminal.
pub struct Bar {
    stop: Option<Sender<()>>,
    drawing: Option<JoinHandle<()>>,
}

impl Bar {
    /// Draw what `look` says, and nothing while that is none.
    pub fn show(mut look: impl FnMut() -> Option<String> + Send + 'static) -> Bar {
        let (stop, stopped) = mpsc::channel::<()>();
        let draw = move || {
            while stopped.recv_timeout(BETWEEN_LOOKS) == Err(RecvTimeoutError::Timeout) {
                draw(look(), "");
            }
            draw(look(), "\n");
        };
        let drawing = std::io::stderr().is_terminal().then(|| std::thread::spawn(draw));
        Bar { stop: Some(stop), drawing }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(drawing) = self.drawing.take() {
            let _ = drawing.join();
        }
    }
}

fn draw(line: Option<String>, end: &str) {
    if let Some(line) = line {
        eprint!("\r{line}{end}");
    }
}
