"""The tickets: texts put together from parts, each with its true category, which only the demo knows."""

from __future__ import annotations

import random
from dataclasses import dataclass

OPENINGS = [
    "Hello,",
    "Hi there,",
    "Good morning, I hope you can help.",
    "To whom it may concern,",
    "Hey team,",
    "This is my second message about this.",
    "Dear support,",
    "Quick question:",
    "I am a customer since last year.",
    "Sorry to bother you again.",
]
CLOSINGS = [
    "Thanks!",
    "Please let me know.",
    "I am waiting for your answer.",
    "Kind regards",
    "What can be done?",
]

PROBLEMS: dict[str, list[str]] = {
    "billing": [
        "the amount on my latest invoice is not what we agreed on.",
        "my credit card was charged two times for the same month.",
        "there is a fee on my bill that nobody can explain to me.",
        "my payment was declined, yet the bank says the card is fine.",
        "the voucher did not reduce the total I had to pay.",
        "I need an invoice with our company address and VAT number.",
        "you charged the yearly price although I booked the monthly plan.",
        "a charge from you is pending on my card and I do not know what for.",
        "I would like to pay by bank transfer from now on.",
        "the tax on the bill looks wrong.",
        "please send me the receipt for my subscription payment.",
        "the price went up on my bill without any notice.",
    ],
    "shipping": [
        "my parcel should have been here on Monday and has not arrived.",
        "the tracking number you sent shows no movement for a week.",
        "the courier says the package was delivered, but it is not here.",
        "can the delivery address of my order still be changed?",
        "only one box of my shipment came, the other is missing.",
        "the driver left the parcel in front of the wrong house.",
        "how long does shipping take to the islands?",
        "customs kept my package and wants papers for the shipment.",
        "I need the delivery before Friday, is express possible?",
        "the carrier sent my parcel back to the depot.",
        "the package was left in the rain by the driver.",
        "when will my order be shipped?",
    ],
    "account": [
        "I cannot log in, my password is refused.",
        "the mail to reset my password never reaches me.",
        "my account was locked after I mistyped the login twice.",
        "please delete my account and the personal data in it.",
        "how can I change the email address of my profile?",
        "the two-factor code is not accepted since I have a new phone.",
        "I think somebody else signed in to my account.",
        "the verification code for my registration had expired when I typed it.",
        "I have two accounts by mistake, can you merge them?",
        "my colleague needs a user login of her own.",
        "the confirmation email to activate my profile does not come.",
        "I would like another user name for my account.",
    ],
    "technical": [
        "the app crashes whenever I open a document.",
        "your website answers with a server error since this morning.",
        "after the last update the program freezes on my laptop.",
        "the export button does not work in any browser.",
        "synchronising with my tablet stopped working.",
        "every page loads slowly and sometimes times out.",
        "the API gives me error code 500 on each upload.",
        "notifications do not appear on my Android phone.",
        "the search shows no results for files that exist.",
        "the video screen stays black after the new version.",
        "the installer ends with an unknown error.",
        "the integration loses its connection every few minutes.",
    ],
    "returns": [
        "the shoes are too small and I want to send them back.",
        "where do I find the return label?",
        "the item came broken, I would like a replacement.",
        "I returned an article three weeks ago and still have no refund.",
        "the jacket has a defect, can you exchange it?",
        "you sent me the wrong colour, I would like to swap it.",
        "may I return a gift without its packaging?",
        "the lamp stopped working within the warranty, I want a new one.",
        "I changed my mind and will send the order back unopened.",
        "the product is not as described, I want to give it back.",
        "how many days do I have to return an item?",
        "the replacement you sent has the same defect, I want to return it.",
    ],
}


@dataclass(frozen=True)
class Ticket:
    """One ticket; the category never leaves the demo."""

    id: str
    text: str
    category: str


def make_tickets(count: int, seed: int = 20) -> list[Ticket]:
    """So many tickets in random order; texts are distinct as long as there are combinations."""
    dice = random.Random(seed)
    texts = [
        (category, f"{opening} {problem} {closing}")
        for category, problems in PROBLEMS.items()
        for problem in problems
        for opening in OPENINGS
        for closing in CLOSINGS
    ]
    dice.shuffle(texts)
    chosen = [texts[number % len(texts)] for number in range(count)]
    return [Ticket(f"T{number:05d}", text, category) for number, (category, text) in enumerate(chosen)]
