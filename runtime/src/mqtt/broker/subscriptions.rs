//! To come: subscriptions.
