//! Handles into a model's arenas. They are never reused, and mean nothing in another model.

use std::num::NonZeroU32;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(NonZeroU32);

        impl Handle for $name {
            fn from_index(index: usize) -> Self {
                let n = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
                Self(n.expect("fewer than 2^32 objects in a model"))
            }

            fn index(self) -> usize {
                self.0.get() as usize - 1
            }
        }
    )*};
}

/// What an arena needs of its handle type.
pub trait Handle: Copy {
    /// The handle of the slot at `index`.
    fn from_index(index: usize) -> Self;
    /// The slot's index.
    fn index(self) -> usize;
}

ids! {
    /// A graph: the main graph, a subgraph in an attribute, or a function's body.
    GraphId,
    /// A node.
    NodeId,
    /// A value: graph input, initializer, or node output.
    ValueId
}

/// Slots that are filled once and emptied at most once; handles are never reused.
#[derive(Debug, Clone)]
pub(crate) struct Arena<H, T> {
    slots: Vec<Option<T>>,
    handle: std::marker::PhantomData<H>,
}

impl<H: Handle, T> Arena<H, T> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), handle: std::marker::PhantomData }
    }

    pub(crate) fn push(&mut self, item: T) -> H {
        self.slots.push(Some(item));
        H::from_index(self.slots.len() - 1)
    }

    pub(crate) fn get(&self, id: H) -> Option<&T> {
        self.slots.get(id.index()).and_then(Option::as_ref)
    }

    pub(crate) fn get_mut(&mut self, id: H) -> Option<&mut T> {
        self.slots.get_mut(id.index()).and_then(Option::as_mut)
    }

    pub(crate) fn take(&mut self, id: H) -> Option<T> {
        self.slots.get_mut(id.index()).and_then(Option::take)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = H> + '_ {
        self.slots.iter().enumerate().filter(|(_, s)| s.is_some()).map(|(i, _)| H::from_index(i))
    }
}
