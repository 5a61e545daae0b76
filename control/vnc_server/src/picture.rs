//! The screen as it was drawn last, and when each part of it changed.

use crate::wire::Rect;
use display::Frame;

/// Sides of the tiles by which changes are known.
pub(crate) const TILE: u16 = 64;

/// Counts drawings that changed something.
pub(crate) type Generation = u64;

#[derive(Debug, Default)]
pub(crate) struct Picture {
    frame: Frame,
    generation: Generation,
    /// When the size changed last.
    resized: Generation,
    /// For each tile, row by row.
    changed: Vec<Generation>,
}

/// Tiles in a row, or rows of tiles.
fn tiles(pixels: u16) -> usize {
    usize::from(pixels.div_ceil(TILE))
}

impl Picture {
    pub(crate) fn size(&self) -> (u16, u16) {
        (self.frame.width(), self.frame.height())
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// Takes over what was drawn, and leaves the old drawing in its place. True if they differ.
    pub(crate) fn update(&mut self, drawn: &mut Frame) -> bool {
        let next = self.generation + 1;
        let (width, height) = (drawn.width(), drawn.height());
        if (width, height) != self.size() {
            self.resized = next;
            self.changed = vec![next; tiles(width) * tiles(height)];
            self.generation = next;
            std::mem::swap(&mut self.frame, drawn);
            return true;
        }
        let mut differs = false;
        for y in 0..height {
            let (old, new) = (self.frame.row(y, 0, width), drawn.row(y, 0, width));
            if old == new {
                continue;
            }
            let marks = self.changed.iter_mut().skip(usize::from(y / TILE) * tiles(width));
            let side = usize::from(TILE);
            for ((old, new), mark) in old.chunks(side).zip(new.chunks(side)).zip(marks) {
                if old != new {
                    *mark = next;
                    differs = true;
                }
            }
        }
        if differs {
            self.generation = next;
            std::mem::swap(&mut self.frame, drawn);
        }
        differs
    }

    /// When the tile changed last; what is outside of the picture does so with its size.
    fn changed_at(&self, column: usize, row: usize) -> Generation {
        let columns = tiles(self.frame.width());
        let inside = column < columns;
        let at = row * columns + column;
        self.changed.get(at).copied().filter(|_| inside).unwrap_or(self.resized)
    }

    /// Copies pixels; black where there are none.
    pub(crate) fn copy(&self, area: Rect, out: &mut Vec<u32>) {
        out.clear();
        let right = area.x.saturating_add(area.width).min(self.frame.width());
        for y in area.y..area.y.saturating_add(area.height) {
            let row = self.frame.row(y, area.x, right);
            out.extend(row);
            out.resize(out.len() + usize::from(area.width) - row.len(), 0);
        }
    }
}

/// What one client has seen of a picture of its own size.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    width: u16,
    height: u16,
    tiles: Vec<Generation>,
}

impl Seen {
    /// Nothing of a picture of this size.
    pub(crate) fn nothing(width: u16, height: u16) -> Self {
        Self { width, height, tiles: vec![0; tiles(width) * tiles(height)] }
    }

    pub(crate) fn size(&self) -> (u16, u16) {
        (self.width, self.height)
    }

    /// The client wants this part anew.
    pub(crate) fn forget(&mut self, area: Rect) {
        self.each(area, |tile, _, _, _| *tile = 0);
    }

    /// Calls with each tile that the area touches: what was seen, its column and row, and the part
    /// of it that is inside.
    fn each(&mut self, area: Rect, mut call: impl FnMut(&mut Generation, usize, usize, Rect)) {
        let right = area.x.saturating_add(area.width).min(self.width);
        let bottom = area.y.saturating_add(area.height).min(self.height);
        let columns = tiles(self.width);
        for y in (area.y / TILE * TILE..bottom).step_by(TILE.into()) {
            for x in (area.x / TILE * TILE..right).step_by(TILE.into()) {
                let (column, row) = (usize::from(x / TILE), usize::from(y / TILE));
                let (x0, y0) = (x.max(area.x), y.max(area.y));
                let (x1, y1) =
                    (x.saturating_add(TILE).min(right), y.saturating_add(TILE).min(bottom));
                let (width, height) = (x1.saturating_sub(x0), y1.saturating_sub(y0));
                let part = Rect { x: x0, y: y0, width, height };
                if width > 0
                    && height > 0
                    && let Some(tile) = self.tiles.get_mut(row * columns + column)
                {
                    call(tile, column, row, part);
                }
            }
        }
    }

    /// What of the area changed since it was seen, which is now; neighbours in a row are one
    /// rectangle.
    pub(crate) fn take_changes(&mut self, picture: &Picture, area: Rect) -> Vec<Rect> {
        let mut changes: Vec<Rect> = Vec::new();
        let now = picture.generation;
        let (width, height) = self.size();
        self.each(area, |seen, column, row, part| {
            if *seen >= picture.changed_at(column, row).max(1) {
                return;
            }
            // Of a tile of which a part is sent, the rest is still to come.
            let ends = |at: u16, len: u16, size: u16| {
                at.is_multiple_of(TILE) && (len == TILE || at.saturating_add(len) == size)
            };
            if ends(part.x, part.width, width) && ends(part.y, part.height, height) {
                *seen = now;
            }
            match changes.last_mut() {
                Some(last)
                    if (last.y, last.height) == (part.y, part.height)
                        && last.x.checked_add(last.width) == Some(part.x) =>
                {
                    last.width = last.width.saturating_add(part.width);
                }
                _ => changes.push(part),
            }
        });
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(width: u16, height: u16, draw: impl Fn(usize, usize) -> u32) -> Frame {
        let mut frame = Frame::default();
        frame.resize(width, height);
        for (y, row) in frame.rows_mut().enumerate() {
            row.iter_mut().enumerate().for_each(|(x, pixel)| *pixel = draw(x, y));
        }
        frame
    }

    const ALL: Rect = Rect { x: 0, y: 0, width: u16::MAX, height: u16::MAX };

    #[test]
    fn changes_are_known_by_tiles() {
        let mut picture = Picture::default();
        assert!(picture.update(&mut frame(200, 100, |_, _| 0)));
        assert!(!picture.update(&mut frame(200, 100, |_, _| 0)));
        let mut seen = Seen::nothing(200, 100);
        let rows = |changes: &[Rect]| {
            changes.iter().map(|r| (r.x, r.y, r.width, r.height)).collect::<Vec<_>>()
        };
        assert_eq!(rows(&seen.take_changes(&picture, ALL)), [(0, 0, 200, 64), (0, 64, 200, 36)]);
        assert!(seen.take_changes(&picture, ALL).is_empty());
        assert!(picture.update(&mut frame(200, 100, |x, y| u32::from((x, y) == (70, 99)))));
        assert_eq!(rows(&seen.take_changes(&picture, ALL)), [(64, 64, 64, 36)]);
        // Of what is asked for in part, the rest comes when it is asked for.
        let part = Rect { x: 70, y: 0, width: 10, height: 10 };
        seen.forget(part);
        assert_eq!(seen.take_changes(&picture, part), [part]);
        assert_eq!(rows(&seen.take_changes(&picture, ALL)), [(64, 0, 64, 64)]);
    }

    #[test]
    fn a_client_of_another_size_sees_black_beside_it() {
        let mut picture = Picture::default();
        picture.update(&mut frame(100, 10, |_, _| 5));
        let mut seen = Seen::nothing(300, 70);
        assert_eq!(seen.take_changes(&picture, ALL).len(), 2);
        assert!(seen.take_changes(&picture, ALL).is_empty());
        let mut pixels = Vec::new();
        picture.copy(Rect { x: 98, y: 9, width: 4, height: 2 }, &mut pixels);
        assert_eq!(pixels, [5, 5, 0, 0, 0, 0, 0, 0]);
        picture.update(&mut frame(200, 10, |_, _| 5));
        assert!(!seen.take_changes(&picture, ALL).is_empty());
    }

    proptest! {
        /// Whatever is asked for and whatever changes, who takes all changes has the picture.
        #[test]
        fn changes_make_the_picture(
            steps in proptest::collection::vec(
                (any::<[u16; 4]>(), 1u16..300, 1u16..300, any::<u32>(), any::<bool>()), 1..12
            )
        ) {
            let mut picture = Picture::default();
            let (width, height) = (150u16, 140u16);
            let mut seen = Seen::nothing(width, height);
            let mut client = vec![0xdead_beef_u32; usize::from(width) * usize::from(height)];
            let mut take = |seen: &mut Seen, picture: &Picture, area| {
                for part in seen.take_changes(picture, area) {
                    let mut pixels = Vec::new();
                    picture.copy(part, &mut pixels);
                    for (y, row) in pixels.chunks(part.width.into()).enumerate() {
                        let at = (usize::from(part.y) + y) * usize::from(width) + usize::from(part.x);
                        client[at..at + row.len()].copy_from_slice(row);
                    }
                }
                client.clone()
            };
            for ([x, y, w, h], new_width, new_height, seed, forget) in steps {
                let area = Rect { x: x % 200, y: y % 200, width: w % 200, height: h % 200 };
                picture.update(&mut frame(new_width, new_height, |x, y| seed >> ((x / 50 + y / 50) % 32)));
                if forget {
                    seen.forget(area);
                }
                take(&mut seen, &picture, area);
            }
            let client = take(&mut seen, &picture, ALL);
            let mut all = Vec::new();
            picture.copy(Rect { x: 0, y: 0, width, height }, &mut all);
            prop_assert_eq!(client, all);
        }
    }
}
