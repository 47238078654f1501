//! Who owns which field. [`fields`] is sets of fields and their text in `managedFields`; [`typed`] reads and merges
//! values by their schema; [`managers`] keeps the entries of an object up to date and finds conflicts. All pure.

pub(crate) mod fields;
pub(crate) mod managers;
pub(crate) mod typed;
