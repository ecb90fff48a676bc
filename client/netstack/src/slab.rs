//! A table whose keys are never reused: an index, and how often that place was taken before.

/// Entries by index and generation.
pub(crate) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    len: usize,
}

struct Place<T> {
    generation: u32,
    entry: Option<T>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Returns index and generation of the new entry.
    pub(crate) fn insert(&mut self, entry: T) -> (u32, u32) {
        self.len += 1;
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.entry = Some(entry);
            (index, place.generation)
        } else {
            self.places.push(Place { generation: 0, entry: Some(entry) });
            ((self.places.len() - 1) as u32, 0)
        }
    }

    pub(crate) fn get_mut(&mut self, index: u32, generation: u32) -> Option<&mut T> {
        let place = self.places.get_mut(index as usize)?;
        if place.generation == generation { place.entry.as_mut() } else { None }
    }

    /// Returns the entry that is at `index` now.
    pub(crate) fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.places.get_mut(index as usize)?.entry.as_mut()
    }

    /// Takes the entry at `index` out; its key is stale from then on.
    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let place = self.places.get_mut(index as usize)?;
        let entry = place.entry.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        self.len -= 1;
        Some(entry)
    }

    /// Returns the indexes of all entries that `select` picks, in order.
    pub(crate) fn indexes(&self, select: impl Fn(&T) -> bool) -> Vec<u32> {
        let is_selected = |place: &Place<T>| place.entry.as_ref().is_some_and(&select);
        self.places.iter().enumerate().filter(|(_, place)| is_selected(place)).map(|(index, _)| index as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_place_has_a_new_key() {
        let mut slab = Slab::new();
        let (index, generation) = slab.insert('a');
        assert_eq!(slab.remove(index), Some('a'));
        let (again, next_generation) = slab.insert('b');
        assert_eq!(again, index);
        assert_ne!(next_generation, generation);
        assert_eq!(slab.get_mut(index, generation), None);
        assert_eq!(slab.get_mut(index, next_generation), Some(&mut 'b'));
        assert_eq!(slab.len(), 1);
    }
}
