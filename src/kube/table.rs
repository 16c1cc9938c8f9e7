//! A table of objects, indexed by name and by two relations.

use std::{collections::HashMap, sync::Arc};

/// `namespace/name`. Neither part contains a slash.
pub(super) type Key = Arc<str>;

pub(super) fn key(namespace: &str, name: &str) -> Key {
    format!("{namespace}/{name}").into()
}

/// An object in a table.
pub(super) trait Row: Sized {
    /// The keys of the two relations. An index maps each key to the objects in the same namespace that have it.
    fn relations(&self) -> [Option<&str>; 2];

    /// Replaces what this object has in common with an object known for longer by that object's copy, so that it is
    /// stored once.
    fn share(&mut self, _with: &Self) {}
}

/// Objects of one kind.
#[derive(Debug)]
pub(super) struct Table<T> {
    rows: HashMap<Key, T>,
    /// For each relation, the keys of the objects by the related key.
    related: [HashMap<Key, Vec<Key>>; 2],
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            rows: HashMap::new(),
            related: Default::default(),
        }
    }
}

impl<T: Row> Table<T> {
    /// Adds or replaces an object.
    pub(super) fn put(&mut self, namespace: &str, name: &str, mut row: T) {
        let key = match self.rows.get_key_value(&key(namespace, name)) {
            Some((key, known)) if known.relations() == row.relations() => {
                row.share(known);
                let key = Arc::clone(key);
                self.rows.insert(key, row);
                return;
            }
            Some((key, _)) => Arc::clone(key),
            None => key(namespace, name),
        };
        self.take(namespace, &key);
        let mut shared = None;
        for (related, relation) in self.related.iter_mut().zip(row.relations()) {
            if let Some(relation) = relation {
                let relatives = related.entry(self::key(namespace, relation)).or_default();
                if let Some(relative) = relatives.first().and_then(|key| self.rows.get(key)) {
                    shared = shared.or(Some(relative));
                }
                relatives.push(Arc::clone(&key));
            }
        }
        if let Some(relative) = shared {
            row.share(relative);
        }
        self.rows.insert(key, row);
    }

    /// Removes an object, if it is present.
    pub(super) fn remove(&mut self, namespace: &str, name: &str) {
        self.take(namespace, &key(namespace, name));
    }

    fn take(&mut self, namespace: &str, key: &Key) {
        let Some(row) = self.rows.remove(key) else {
            return;
        };
        for (related, relation) in self.related.iter_mut().zip(row.relations()) {
            let Some(relation) = relation.map(|relation| self::key(namespace, relation)) else {
                continue;
            };
            if let Some(relatives) = related.get_mut(&relation) {
                relatives.retain(|relative| relative != key);
                if relatives.is_empty() {
                    related.remove(&relation);
                }
            }
        }
    }

    /// Returns an object by its name.
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&T> {
        self.rows.get(&key(namespace, name))
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns the objects that have this key in this relation.
    pub(super) fn related(&self, relation: usize, key: &str) -> impl Iterator<Item = (&Key, &T)> {
        let keys = self.related[relation].get(key).into_iter().flatten();
        keys.filter_map(|key| self.rows.get_key_value(key))
    }

    /// Returns whether the table and its indexes are empty.
    #[cfg(test)]
    pub(super) fn is_blank(&self) -> bool {
        self.rows.is_empty() && self.related.iter().all(HashMap::is_empty)
    }
}
