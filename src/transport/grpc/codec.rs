//! A Protocol Buffers codec that treats malformed bytes as the caller's error, not the agent's.

use std::{any::TypeId, marker::PhantomData};

use election_proto::LeadRequest;
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstEncoder};

use crate::status::{Code, Problem};

/// The initial size of an encoding buffer, and how much is encoded before it is sent, in bytes. Most replies
/// are far below the first. With tonic's default of 8 KiB, the buffer would be the largest part of a small
/// request.
const BUFFER: usize = 512;
const YIELD: usize = 32 * 1024;

/// Prost's codec, except that a message that does not decode is InvalidArgument (in tonic, Internal), and so
/// is a second message of a method that takes one: tonic would leave it unread.
#[derive(Debug)]
pub struct StrictCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for StrictCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for StrictCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = StrictDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        StrictDecoder {
            decoded: false,
            takes_stream: TypeId::of::<U>() == TypeId::of::<LeadRequest>(),
            message: PhantomData,
        }
    }
}

/// Decodes exactly one message, or those of a stream.
#[derive(Debug)]
pub struct StrictDecoder<U> {
    /// Whether the message was decoded.
    decoded: bool,
    takes_stream: bool,
    message: PhantomData<U>,
}

impl<U: Message + Default> Decoder for StrictDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if std::mem::replace(&mut self.decoded, true) && !self.takes_stream {
            let problem = Problem::new(
                Code::InvalidArgument,
                "the call has more than one message: send one",
            );
            return Err(problem.into());
        }
        U::decode(buffer).map(Some).map_err(|error| {
            Problem::new(
                Code::InvalidArgument,
                format!("the message does not decode as its protobuf type: {error}"),
            )
            .into()
        })
    }
}
