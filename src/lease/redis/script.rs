//! The Lua scripts, one per operation of a node.

use std::sync::LazyLock;

use redis::{RedisResult, Script, aio::ConnectionLike};

macro_rules! scripts {
    ($($name:ident: $($file:literal)+;)+) => {
        /// One script per operation; the header of each file says what it takes and gives.
        pub(super) struct Scripts { $(pub(super) $name: Script,)+ }

        /// The scripts, hashed once.
        pub(super) static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
            $($name: Script::new(concat!($(include_str!(concat!("lua/", $file, ".lua"))),+)),)+
        });

        impl Scripts {
            /// Loads every script into the server, so that no request has to.
            pub(super) async fn preload(
                &self,
                connection: &mut impl ConnectionLike,
            ) -> RedisResult<()> {
                $(self.$name.load_async(connection).await?;)+
                Ok(())
            }
        }
    };
}

scripts! {
    grant: "common" "grant";
    extend: "extend";
    heal: "common" "heal";
    resign: "resign";
    withdraw: "common" "withdraw";
    read: "common" "read";
    list: "common" "list";
    mark: "common" "mark";
    probe: "common" "probe";
}
