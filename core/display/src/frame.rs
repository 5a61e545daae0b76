//! A picture of a screen.

/// No screen has more pixels than this: 2560 by 1600.
pub const PIXELS_MAX: usize = 2560 * 1600;

/// What a screen shows at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    width: u16,
    height: u16,
    pixels: Vec<u32>,
}

impl Frame {
    /// Black, of this size; sides of 0 become 1, and what is more than [`PIXELS_MAX`] is cut off at
    /// the bottom. Memory that the frame has is used again.
    pub fn resize(&mut self, width: u16, height: u16) {
        let width = width.max(1);
        let rows = PIXELS_MAX / usize::from(width);
        let height = height.clamp(1, u16::try_from(rows).unwrap_or(u16::MAX));
        if (width, height) != (self.width, self.height) {
            self.pixels.clear();
            self.pixels.resize(usize::from(width) * usize::from(height), 0);
            (self.width, self.height) = (width, height);
        }
    }

    /// Pixels in a row.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> u16 {
        self.height
    }

    /// All pixels, row by row from the top, each `0x00RRGGBB`.
    pub fn pixels(&self) -> &[u32] {
        &self.pixels
    }

    /// The rows, to be drawn.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = &mut [u32]> {
        self.pixels.chunks_exact_mut(usize::from(self.width).max(1))
    }

    /// Part of a row; empty where there is none.
    pub fn row(&self, y: u16, from: u16, to: u16) -> &[u32] {
        let start = usize::from(y) * usize::from(self.width);
        let row = self.pixels.get(start..start + usize::from(self.width)).unwrap_or_default();
        row.get(usize::from(from)..usize::from(to)).unwrap_or_default()
    }
}

/// A display adapter with what is connected to it.
pub trait Screen: Send + Sync {
    /// Draws what is shown now, and resizes the frame to it. Called from any thread, at any time.
    fn render(&self, frame: &mut Frame);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_bounded_and_never_empty() {
        let mut frame = Frame::default();
        assert!(frame.row(0, 0, 1).is_empty());
        frame.resize(0, 0);
        assert_eq!((frame.width(), frame.height(), frame.pixels().len()), (1, 1, 1));
        frame.resize(u16::MAX, u16::MAX);
        assert!(frame.pixels().len() <= PIXELS_MAX);
        assert_eq!(frame.pixels().len(), usize::from(frame.width()) * usize::from(frame.height()));
        frame.resize(3, 2);
        frame.rows_mut().enumerate().for_each(|(y, row)| row.fill(y as u32));
        assert_eq!((frame.row(1, 1, 3), frame.row(1, 1, 4)), (&[1, 1][..], &[][..]));
        assert!(frame.row(2, 0, 1).is_empty());
    }
}
