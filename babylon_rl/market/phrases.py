"""The words of the simulated market's news: company news, questions, and which of them training ever sees.

Unseen phrases share no content word with trained ones (a test enforces it), so that a policy that trades well on them
has learnt what news means and not which phrases pay.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class QuestionPhrases:
    """A yes/no question with the news that speaks for YES and the news that speaks against it."""

    text: str
    good: str
    bad: str


@dataclass(frozen=True)
class PhraseBank:
    """Company news, good and bad, and questions, from which the market draws."""

    good: tuple[str, ...]
    bad: tuple[str, ...]
    questions: tuple[QuestionPhrases, ...]


TRAINED = PhraseBank(
    good=(
        "wins a record order from the navy",
        "beats profit forecasts by a wide margin",
        "signs a ten-year supply deal",
        "doubles its dividend",
        "gets approval for its new drug",
        "opens three new factories on time",
        "reports strong growth in sales",
        "lands a major partner in Asia",
        "raises its outlook for the year",
        "settles the lawsuit on good terms",
        "hires a celebrated engineer",
        "wins praise from every reviewer",
        "secures cheap funding for expansion",
        "sells out its flagship product",
        "gains market share from rivals",
        "earns a top credit rating",
        "posts its best quarter ever",
        "cuts costs and lifts margins",
        "beats rivals to a huge contract",
        "finds a rich new copper mine",
        "is named supplier of the year",
        "doubles output at half the cost",
        "wins back its biggest customer",
        "buys back a tenth of its stock",
        "repays its loans early",
        "passes every safety test with top marks",
        "accepts a takeover at a high premium",
        "reports record profit in every region",
    ),
    bad=(
        "recalls thousands of faulty engines",
        "misses profit forecasts badly",
        "loses its largest customer",
        "cuts its dividend to zero",
        "fails a safety inspection",
        "shuts two plants after a fire",
        "reports a sharp drop in sales",
        "faces a fraud investigation",
        "lowers its outlook for the year",
        "loses the patent lawsuit",
        "sees its chief resign in scandal",
        "suffers a massive data breach",
        "delays its flagship product again",
        "warns of heavy losses",
        "defaults on a bond payment",
        "is hit by a costly strike",
        "posts its worst quarter ever",
        "loses its licence to operate",
        "is fined for price fixing",
        "halts production after an explosion",
        "pulls its main product as unsafe",
        "fires half its staff",
        "finds large errors in its accounts",
        "is banned from its biggest market",
        "scraps a failed project at great cost",
        "sees costs rise and margins fall",
        "is left with unsold goods",
        "loses market share to cheap rivals",
    ),
    questions=(
        QuestionPhrases("Will the bridge open?", "the bridge passes its final tests", "cracks are found in the bridge"),
        QuestionPhrases("Will the bill pass?", "the senate rallies behind the bill", "senators turn against the bill"),
        QuestionPhrases(
            "Will the rocket launch?", "engineers clear the rocket for launch", "a leak grounds the rocket"
        ),
        QuestionPhrases(
            "Will the team win?", "the team's star striker is fit again", "the team's star striker is injured"
        ),
        QuestionPhrases("Will the merger close?", "regulators welcome the merger", "regulators oppose the merger"),
        QuestionPhrases("Will the harvest be large?", "gentle rain helps the harvest", "drought ruins the harvest"),
        QuestionPhrases(
            "Will the vaccine work?", "the vaccine protects every patient", "the vaccine fails its main trial"
        ),
        QuestionPhrases("Will the mayor win?", "polls put the mayor far ahead", "polls put the mayor far behind"),
        QuestionPhrases(
            "Will the tunnel be ready?", "diggers finish the tunnel early", "a flood fills the half-built tunnel"
        ),
        QuestionPhrases(
            "Will the airline survive?", "a rich buyer saves the airline", "banks refuse to fund the airline"
        ),
    ),
)

UNSEEN = PhraseBank(
    good=(
        "announces a stunning breakthrough in batteries",
        "celebrates its happiest fans ever",
        "receives a generous government grant",
        "triumphs at the trade show",
        "enjoys booming demand abroad",
        "unveils a brilliant gadget that shoppers love",
        "attracts eager investors",
        "is upgraded by leading analysts",
        "impresses bankers with surging revenue",
        "scores a spectacular victory in court",
        "delights crowds with a superb gadget",
        "collects royalties from a famous song",
    ),
    bad=(
        "is sued over toxic waste",
        "collapses under mounting debt",
        "cannot pay workers",
        "confesses to cheating taxpayers",
        "watches crowds abandon stores",
        "is downgraded amid panic",
        "sinks into bankruptcy court",
        "apologises for deadly accidents",
        "is accused of bribing ministers",
        "struggles as angry shoppers flee",
        "begs lenders for rescue",
        "wastes millions on a useless gadget",
    ),
    questions=(
        QuestionPhrases(
            "Will the festival happen?", "organisers confirm bands and permission", "storms wreck the festival stage"
        ),
        QuestionPhrases("Will peace hold?", "both armies withdraw happily", "shelling resumes near the border"),
        QuestionPhrases(
            "Will the museum reopen?", "generous donors rescue the museum", "mould destroys the museum roof"
        ),
        QuestionPhrases(
            "Will the orchestra tour?", "sponsors gladly support the orchestra", "musicians angrily quit the orchestra"
        ),
        QuestionPhrases("Will the reef recover?", "coral flourishes along the reef", "pollution kills the reef"),
    ),
)
